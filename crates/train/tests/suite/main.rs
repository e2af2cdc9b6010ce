//! The library as its users meet it, on a model of a few thousand numbers.

mod checkpoint;
mod common;
mod example;
mod ranks;
mod run;
mod step;
