//! What the kernels of a training step and of a generated token do on a GPU, counted on the CPU in the guise of one: that neighbours read
//! what lies together, that banks of shared memory do not conflict, and that memory moves what the shapes demand.
#![cfg(target_os = "linux")]

mod attention;
mod model;
mod step;
mod token;
