//! The crate from outside: one binary, one module per promise.

mod blockwise8;
mod checkpoint;
mod clip;
#[cfg(target_os = "linux")]
mod cuda;
mod golden;
mod paging;
mod policy;
mod refusals;
mod schedule;
mod training;
