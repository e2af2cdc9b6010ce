//! Matrices as bitsandbytes stores them in a checkpoint, taken over and written byte for byte.
//!
//! A linear layer `P` in four bits is `P.weight` (packed codes), `P.weight.absmax`, `P.weight.quant_map` and
//! `P.weight.quant_state.bitsandbytes__nf4` or `__fp4` (JSON), with `P.weight.nested_absmax` and `P.weight.nested_quant_map` if
//! doubly quantised. In eight bits it is `P.weight` (codes), `P.SCB` (a scale a row) and `P.weight_format`.

mod read;
mod skipped;
#[cfg(test)]
mod tests;
mod write;

pub use read::{holds_codes, stored_format};
pub use skipped::Skipped;
pub use write::{Part, parts, quantization_config};

use crate::{Format, FrozenMatrix};
use halfbyte_files::Reading;
use halfbyte_ops::{Refusal, WeightFormat};
use halfbyte_tensor::{Device, Tensor};
use std::sync::Arc;

/// How the name of a 4-bit weight's description goes on after `P.weight.`, up to the code.
const STATE: &str = "quant_state.bitsandbytes__";

/// A checkpoint whose matrices are quantised already. Of those that it leaves dense the skipped ones stay so, and the others are
/// kept in the same format.
#[derive(Debug)]
pub struct Stored {
    /// What most matrices are stored as.
    pub format: Format,
    /// What is dense on purpose.
    pub skipped: Skipped,
}

impl WeightFormat for Stored {
    fn freeze(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        match self.skipped.contains(path) {
            true => self.keep(path, weight),
            false => WeightFormat::freeze(&self.format, path, weight),
        }
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.format.keep(path, weight)
    }

    fn takes_from_gpu(&self) -> bool {
        self.format.takes_from_gpu()
    }

    fn stored(
        &self,
        path: &str,
        dims: (usize, usize),
        files: &Reading<'_>,
        device: &Device,
    ) -> Result<Option<Arc<dyn FrozenMatrix>>, Refusal> {
        Ok(read::matrix(path, dims, (files, device))?)
    }
}
