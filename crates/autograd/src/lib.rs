//! A tape of fused ops with hand-derived backward passes.
//!
//! [`Tape::record`] takes the backward closure as a required argument, so no op can silently stop a gradient. A frozen
//! weight is not a [`Param`]: it has no place where a gradient could go.

mod error;
mod gradient_place;
mod grads;
mod offload;
mod param;
pub mod profile;
mod strips;
mod tape;
mod var;

pub use error::{Error, Result};
pub use gradient_place::GradientPlace;
pub use grads::Grads;
pub use param::{Param, ParamId};
pub use tape::Tape;
pub use var::{Kept, Recipe, Var};
