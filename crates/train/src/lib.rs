#![doc = include_str!("../README.md")]
//!
//! ## How the parts fit
//! - [`Objective`] is the loss of a micro-batch. Everything else is the same whatever is minimised.
//! - [`Step`] runs forward and backward over the micro-batches of a step and hands the gradients to [`Optim`].
//! - [`Run`] is the loop around it. It tells its [`Observer`]s what happens and prints nothing itself.
//! - [`Checkpoints`] keep what going on needs, bit for bit.
//! - [`Ranks`] is where several devices will meet; [`Alone`] is the only one so far.
#![forbid(unsafe_code)]

mod best;
mod checkpoint;
mod error;
mod evaluate;
mod learned;
mod loss_scale;
pub mod objective;
mod observer;
mod optim;
mod params;
mod ranks;
mod run;
mod step;

pub use best::{Best, EarlyStopping};
pub use checkpoint::{Checkpoints, RunState};
pub use error::{BoxError, Error, Result};
pub use evaluate::{EvalLoss, evaluate};
pub use loss_scale::LossScale;
pub use objective::{How, Micro, Objective};
pub use observer::{Event, Observer, StepReport};
pub use optim::{Optim, OptimConfig, Seen, StateConfig, Update};
pub use params::parameters;
pub use ranks::{Alone, Ranks};
pub use run::{End, Length, Run, RunConfig, Saving};
pub use step::{Step, StepConfig, StepResult};
