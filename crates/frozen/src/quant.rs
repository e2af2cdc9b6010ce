use crate::{DenseMatrix, FourBitMatrix, FrozenMatrix, Int8Matrix, Result};
use halfbyte_nf4::QuantType;
use halfbyte_ops::{Refusal, WeightFormat};
use halfbyte_tensor::Tensor;
use std::sync::Arc;

/// How a frozen matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// As loaded.
    None,
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit floating point.
    Fp4,
    /// 4-bit integers.
    Int4,
    /// 8-bit integers, a scale a row.
    Int8,
}

/// A storage format with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Which codec.
    pub quant: Quant,
    /// Elements a scale of the 4-bit formats covers.
    pub block_size: usize,
    /// Whether those scales are quantised once more.
    pub double_quant: bool,
}

impl Format {
    /// Dense, as loaded.
    pub const DENSE: Format = Format { quant: Quant::None, block_size: 64, double_quant: false };

    /// QLoRA's: NF4 in blocks of 64 with double quantisation.
    pub const QLORA: Format = Format { quant: Quant::Nf4, block_size: 64, double_quant: true };

    /// Stores a `(out_features, in_features)` weight.
    pub fn freeze(&self, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>> {
        let four = |quant_type| -> Result<Arc<dyn FrozenMatrix>> {
            Ok(Arc::new(FourBitMatrix::quantize(&weight, quant_type, self.block_size, self.double_quant)?))
        };
        match self.quant {
            Quant::Nf4 => four(QuantType::Nf4),
            Quant::Fp4 => four(QuantType::Fp4),
            Quant::Int4 => four(QuantType::Int4),
            Quant::Int8 => Ok(Arc::new(Int8Matrix::quantize(&weight)?)),
            Quant::None => Ok(Arc::new(DenseMatrix::new(weight)?)),
        }
    }

    /// Bytes that a matrix of these dimensions takes, for the plan. `dense_size` is the size of a loaded element.
    pub fn bytes(&self, out: usize, inner: usize, dense_size: usize) -> usize {
        let n = out * inner;
        let blocks = n.div_ceil(self.block_size);
        match (self.quant, self.double_quant) {
            (Quant::None, _) => n * dense_size,
            (Quant::Int8, _) => n + 4 * out,
            (_, false) => n.div_ceil(2) + 4 * blocks,
            (_, true) => n.div_ceil(2) + blocks + 4 * blocks.div_ceil(halfbyte_nf4::NESTED_BLOCK_SIZE) + 4,
        }
    }
}

impl WeightFormat for Format {
    fn freeze(&self, _path: &str, weight: Tensor) -> std::result::Result<Arc<dyn FrozenMatrix>, Refusal> {
        Ok(Format::freeze(self, weight)?)
    }

    fn keep(&self, _path: &str, weight: Tensor) -> std::result::Result<Arc<dyn FrozenMatrix>, Refusal> {
        Ok(Format::freeze(&Format::DENSE, weight)?)
    }
}
