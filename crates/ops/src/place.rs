//! The one switch between the halves of an op: host loops, GPU kernels, or the books of a dry run.
//!
//! An op makes its results with `scratch_like`, which works anywhere, and fills them through [`fill`]. So no half can be forgotten, and
//! none returns memory that nobody wrote.

use halfbyte_autograd::Result;
use halfbyte_cuda::Gpu;
use halfbyte_tensor::{Ledger, Place, Tensor};
use std::sync::Arc;

/// What one run of an op costs, for the roofline of a dry run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    flops: u64,
    bytes: u64,
    passing: usize,
}

impl Cost {
    /// An op that reads and writes these tensors once, with so many floating-point operations for each element of the first.
    pub(crate) fn of(flops_an_element: usize, tensors: &[&Tensor]) -> Cost {
        let flops = tensors.first().map_or(0, |it| it.len() * flops_an_element) as u64;
        let bytes = tensors.iter().map(|it| it.bytes()).sum::<usize>() as u64;
        Cost { flops, bytes, passing: 0 }
    }

    /// An op with so many floating-point operations and bytes read and written.
    pub(crate) fn new(flops: usize, bytes: usize) -> Cost {
        Cost { flops: flops as u64, bytes: bytes as u64, passing: 0 }
    }

    /// With so many floating-point operations in all, but for those of products on a GPU, which count themselves.
    #[must_use]
    pub(crate) fn flops(self, flops: usize) -> Cost {
        Cost { flops: flops as u64, ..self }
    }

    /// With memory that the host's half holds meanwhile beside its tensors.
    #[must_use]
    pub(crate) fn passing(self, bytes: usize) -> Cost {
        Cost { passing: bytes, ..self }
    }

    /// Enters it in the books.
    pub(crate) fn count(self, ledger: &Ledger) {
        ledger.pass(self.passing);
        ledger.count(self.flops, self.bytes);
    }
}

/// Fills the results `out` of an op, made with `scratch_like`, by the half that belongs to the place of `at`.
///
/// # Errors
/// What the half that ran reports.
pub(crate) fn fill<O>(
    at: &Tensor,
    cost: Cost,
    mut out: O,
    host: impl FnOnce(&mut O) -> Result<()>,
    gpu: impl FnOnce(&Arc<Gpu>, &mut O) -> halfbyte_tensor::Result<()>,
) -> Result<O> {
    match at.place() {
        Place::Host => host(&mut out)?,
        Place::Gpu(it) => {
            gpu(it, &mut out)?;
            it.count_operations(cost.flops);
        }
        Place::Dry(ledger) => cost.count(ledger),
    }
    Ok(out)
}

/// Whether the GPU's half of an op runs at this tensor: for ops whose halves go different ways.
pub(crate) fn on_gpu(at: &Tensor) -> bool {
    matches!(at.place(), Place::Gpu(_))
}

/// Runs a step of a GPU's half.
///
/// # Errors
/// If the GPU fails.
pub(crate) fn on_device(
    at: &Tensor,
    gpu: impl FnOnce(&Arc<Gpu>) -> halfbyte_tensor::Result<()>,
) -> halfbyte_tensor::Result<()> {
    match at.place() {
        Place::Gpu(it) => gpu(it),
        Place::Host | Place::Dry(_) => unreachable!("a step of the GPU's half, asked of a tensor that is not there"),
    }
}
