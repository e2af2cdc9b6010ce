//! The crate from outside: one binary, one module per promise.

mod checkpoint;
mod clip;
mod golden;
mod paging;
mod policy;
mod refusals;
mod schedule;
mod training;
