//! Where several devices that train one model meet.
//!
//! Every rank holds the data set and walks the same batches; of a step's micro-batches it computes every `world`-th. So the
//! loss's denominator needs no exchange, and neither do order, schedule and position in the data. What is exchanged is one
//! list of tensors a step.

use crate::Result;
use halfbyte_tensor::Tensor;

/// The processes or threads that train one model together.
pub trait Ranks: Send + Sync {
    /// Which of them this is, from 0. Only rank 0 writes files.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// Puts into every tensor the sum of what the ranks hold in its place, with the same bits on every rank. All ranks call it
    /// with tensors of the same number, shapes and order: the gradients as their parameters are registered, then the loss.
    ///
    /// # Errors
    /// If another rank cannot be reached, or its tensors do not fit.
    fn all_reduce(&self, tensors: &mut [Tensor]) -> Result<()>;
}

/// A single device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut [Tensor]) -> Result<()> {
        Ok(())
    }
}
