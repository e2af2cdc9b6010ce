//! Matrices as bitsandbytes stores them in a checkpoint, taken over and written byte for byte.
//!
//! A linear layer `P` in four bits is `P.weight` (packed codes), `P.weight.absmax`, `P.weight.quant_map` and
//! `P.weight.quant_state.bitsandbytes__nf4` or `__fp4` (JSON), with `P.weight.nested_absmax` and `P.weight.nested_quant_map` if
//! doubly quantised. In eight bits it is `P.weight` (codes), `P.SCB` (a scale a row) and `P.weight_format`.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::stored_format;
pub use write::{Part, parts, quantization_config};

use crate::{Format, FrozenMatrix};
use halfbyte_files::Reading;
use halfbyte_ops::{Refusal, WeightFormat};
use halfbyte_tensor::Tensor;
use std::sync::Arc;

/// How the name of a 4-bit weight's description goes on after `P.weight.`, up to the code.
const STATE: &str = "quant_state.bitsandbytes__";

/// A checkpoint whose matrices are quantised already. Those that it leaves dense are kept in the same format.
#[derive(Clone, Copy, Debug)]
pub struct Stored(pub Format);

impl WeightFormat for Stored {
    fn freeze(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        WeightFormat::freeze(&self.0, path, weight)
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.0.keep(path, weight)
    }

    fn stored(
        &self,
        path: &str,
        dims: (usize, usize),
        files: &Reading<'_>,
    ) -> Result<Option<Arc<dyn FrozenMatrix>>, Refusal> {
        Ok(read::matrix(path, dims, files)?)
    }
}
