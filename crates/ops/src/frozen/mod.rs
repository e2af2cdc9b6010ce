//! The one waist between quantisation and everything above it: a frozen weight describes itself, and all products with it go through
//! one door, behind which each device has a way of its own.
//!
//! On a CPU a product reads the weight panel by panel, so it is never decoded as a whole. A GPU decodes it into a workspace of the pool,
//! beside the product before, and multiplies that; for few rows 4-bit codes are multiplied as they are. A format
//! whose product is not that of its decoded values (LLM.int8) multiplies by itself.

pub(crate) mod ahead;
mod door;

pub(crate) use door::{Epilogue, Side, decoded, decoded_below, decoded_beside, is_coded, multiply, there};

use crate::{few_rows, gpu_product::Window};
use halfbyte_autograd::Result;
use halfbyte_matmul::Source;
use halfbyte_tensor::{DType, Device, Place, Tensor};
use rayon::prelude::*;
use std::{fmt::Debug, sync::Arc};

/// A weight `(out_features, in_features)` that never trains.
///
/// 4-bit weights stay 4-bit: a product reads them anew, in the forward and again in the backward pass.
pub trait FrozenMatrix: Send + Sync + Debug {
    /// `(out_features, in_features)`.
    fn dims(&self) -> (usize, usize);

    /// The operand that a CPU product reads, of `out_features` rows and `in_features` columns.
    ///
    /// # Panics
    /// If the matrix is not in host memory; [`on_host`] brings it there.
    fn source<'a>(&'a self) -> Box<dyn Source + 'a>;

    /// Resident bytes.
    fn bytes(&self) -> usize;

    /// What it is, for people: `nf4 (block 64, double quantised)`, `bf16`.
    fn format(&self) -> String;

    /// What of it lies on a GPU, or would in a dry run; `None` in host memory.
    fn on_device(&self) -> Option<OnDevice<'_>> {
        None
    }

    /// A copy of the matrix on another device; `None` where it lies there already, or knows no way.
    ///
    /// # Errors
    /// If the device has no memory left, or failed before.
    fn to_device(&self, _device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        Ok(None)
    }

    /// `x Wᵀ` (without bias) of a format whose forward is not the product with its decoded values, such as LLM.int8().
    fn forward(&self, _x: &Tensor) -> Option<Result<Tensor>> {
        None
    }

    /// Whether [`FrozenMatrix::forward`] gives anything.
    fn multiplies_itself(&self) -> bool {
        false
    }
}

/// A frozen matrix away from host memory.
#[derive(Clone, Copy)]
pub enum OnDevice<'a> {
    /// `(out_features, in_features)` floating-point numbers.
    Dense(&'a Tensor),
    /// Anything that has to be decoded.
    Coded(&'a dyn Coded),
}

/// What a GPU does with a matrix that is kept in codes, or a dry run counts.
pub trait Coded {
    /// Where the codes lie; never in host memory.
    fn place(&self) -> Place<'_>;

    /// Who decodes it, always the same one.
    fn decoder(&self) -> Arc<dyn Decoder>;

    /// The parts of a matrix of 4-bit codes, which a product of few rows ([`has_few_rows`]) reads as they are; `None` for any other.
    fn four_bit(&self) -> Option<FourBit<'_>> {
        None
    }
}

/// What is decoded of a matrix of codes.
pub trait Decoder: Send + Sync + Debug {
    /// Writes the decoded values into a window of the matrix' dimensions, rounded to its dtype.
    ///
    /// # Errors
    /// If the GPU fails.
    fn decode(&self, into: Window<'_>) -> halfbyte_tensor::Result<()>;
}

/// A matrix of 4-bit codes: element `i` of its flattened rows is `values[code i]` times the scale of its block. That is
/// `map[scale_codes[block]] * nested[block / 256] + offset` where scales are doubly quantised, else `absmax[block]`.
#[derive(Clone, Copy, Debug)]
pub struct FourBit<'a> {
    /// `(out_features, in_features)`.
    pub dims: (usize, usize),
    /// Bytes: element `2k` in the high nibble of byte `k`.
    pub codes: &'a Tensor,
    /// f32: the 16 values, and behind them the 256 of the map.
    pub tables: &'a Tensor,
    /// f32, a scale a block.
    pub absmax: Option<&'a Tensor>,
    /// Bytes, a code a block.
    pub scale_codes: Option<&'a Tensor>,
    /// f32, for every 256 blocks.
    pub nested: Option<&'a Tensor>,
    /// Of doubly quantised scales.
    pub offset: f32,
    /// A block has `2^shift` elements, 32 at least.
    pub shift: usize,
}

/// Up to so many rows, as in generation, a product is mostly the reading of its weight.
pub const FEW_ROWS: usize = 8;

/// Whether `x` has so few rows for a product with `w`: up to [`FEW_ROWS`] anywhere, more where a GPU multiplies codes as they are. Such a
/// product has no use for room beside the rows of `x`.
pub fn has_few_rows(x: &Tensor, w: &dyn FrozenMatrix) -> bool {
    x.rows() <= FEW_ROWS || few_rows::fit(x, [w].into_iter())
}

impl OnDevice<'_> {
    /// The device.
    pub fn device(&self) -> Device {
        match self {
            OnDevice::Dense(weight) => weight.device(),
            OnDevice::Coded(it) => match it.place() {
                Place::Host => Device::Cpu,
                Place::Gpu(gpu) => Device::Cuda(gpu.clone()),
                Place::Dry(ledger) => Device::Dry(ledger.clone()),
            },
        }
    }
}

/// The matrix in host memory, where [`FrozenMatrix::source`] can be asked for: itself, if it is there.
///
/// # Errors
/// If it cannot be copied there.
pub fn on_host(matrix: &Arc<dyn FrozenMatrix>) -> Result<Arc<dyn FrozenMatrix>> {
    match matrix.on_device() {
        None => Ok(matrix.clone()),
        Some(_) => Ok(matrix.to_device(&Device::Cpu)?.unwrap_or_else(|| matrix.clone())),
    }
}

/// The decoded values, f32 `(out_features, in_features)` in host memory: for what is done once, such as a merge.
///
/// # Errors
/// If the matrix cannot be read from its device.
pub fn dense(matrix: &Arc<dyn FrozenMatrix>) -> Result<Tensor> {
    let ((out, inner), here) = (matrix.dims(), on_host(matrix)?);
    let mut w = Tensor::scratch(&[out, inner], DType::F32);
    let source = here.source();
    w.data_mut::<f32>()
        .par_chunks_mut(inner.max(1))
        .enumerate()
        .for_each(|(row, values)| halfbyte_matmul::read_row(&*source, row, values));
    drop(source);
    Ok(w)
}
