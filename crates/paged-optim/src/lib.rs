#![doc = include_str!("../README.md")]
//!
//! ## How the parts fit
//! - [`AdamW`] owns the step: it walks the state page by page, in order, and updates the parameters beside it.
//! - The arena (private) is the mechanism: frames in memory, a spill file behind them.
//! - [`policy`] decides which page leaves when another must come in. It does no I/O, so it is tested on its own.
//! - [`clip_by_global_norm`] and [`LrSchedule`] are what stands around an optimizer in a training loop.
//!
//! - [`CudaAdamW`] is the same on a GPU, with page-locked host memory in the place of the file.
//!
//! Only slices and plain GPU memory go in and out: this crate knows no tensor type.

mod adamw;
mod arena;
mod clip;
mod cuda;
mod error;
mod format;
mod layout;
pub mod policy;
mod schedule;
mod spill;
mod state;
mod update;
mod update8;

pub use adamw::{AdamW, AdamWConfig, Budget, PageStats, ParamSpec, ParamStep};
pub use clip::{clip_by_global_norm, global_norm};
pub use cuda::{CudaAdamW, CudaParamStep, sums_of_squares};
pub use error::{Error, Result};
pub use format::{StateFormat, StatePart};
pub use schedule::{Decay, LrSchedule, Schedule};
pub use state::{ParamState, State, StatePlace};
