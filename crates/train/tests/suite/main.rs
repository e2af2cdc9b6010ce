//! The library as its users meet it, on a model of a few thousand numbers.

mod best;
mod checkpoint;
mod common;
#[cfg(target_os = "linux")]
mod cuda;
mod example;
#[cfg(target_os = "linux")]
mod generation;
mod preference;
mod ranks;
mod recipe;
#[cfg(target_os = "linux")]
mod repeated;
mod run;
mod step;
mod torture;
