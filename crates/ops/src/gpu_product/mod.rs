//! Products on a GPU: operands of one type by cuBLASLt, frozen weights decoded into a workspace that the next product uses again.

pub(crate) mod cuda;

use halfbyte_tensor::Tensor;

pub use cuda::{Operand, decode, multiply, product};

/// What a frozen weight is made of on a GPU, as [`FrozenMatrix::on_gpu`](crate::FrozenMatrix::on_gpu) shows it. All tensors lie there.
#[derive(Clone, Copy, Debug)]
pub enum GpuWeight<'a> {
    /// `(out_features, in_features)` floating-point numbers.
    Dense(&'a Tensor),
    /// 4-bit codes in blocks over the flattened rows.
    FourBit {
        /// Two codes a byte, the first in the high nibble.
        packed: &'a Tensor,
        /// The sixteen values of the code, f32.
        code: &'a Tensor,
        /// The absmax of every block.
        scales: GpuScales<'a>,
        /// Elements a block.
        block_size: usize,
    },
    /// 8-bit codes with an absmax a row.
    Rows8 {
        /// `(out_features, in_features)` bytes, two's complement.
        codes: &'a Tensor,
        /// f32.
        absmax: &'a Tensor,
    },
}

/// The absmax of every block of a 4-bit weight.
#[derive(Clone, Copy, Debug)]
pub enum GpuScales<'a> {
    /// f32.
    Plain(&'a Tensor),
    /// `map[codes[b]] * nested_absmax[b / 256] + offset`.
    Double {
        /// Bytes.
        codes: &'a Tensor,
        /// 256 values, f32.
        map: &'a Tensor,
        /// f32.
        nested_absmax: &'a Tensor,
        /// Added to all.
        offset: f32,
    },
}
