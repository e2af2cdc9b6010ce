//! `y = x Wᵀ + b` for a weight that never trains: the one waist between quantisation and everything above it.

#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;

use crate::{
    gpu_product::GpuWeight,
    linear::no_bias,
    lora_linear::{Layer, lora_linears},
    product::{self, Left},
};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_matmul as matmul;
use halfbyte_tensor::{Device, Tensor};
use std::sync::Arc;

/// A frozen weight describes itself; the products belong to the ops.
///
/// 4-bit weights stay 4-bit: a product reads them panel by panel, in the forward and again in the backward pass.
pub trait FrozenMatrix: Send + Sync + std::fmt::Debug {
    /// `(out_features, in_features)`.
    fn dims(&self) -> (usize, usize);

    /// The operand that a CPU product reads, of `out_features` rows and `in_features` columns.
    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a>;

    /// Resident bytes.
    fn bytes(&self) -> usize;

    /// What it is, for people: `nf4 (block 64, double quantised)`, `bf16`.
    fn format(&self) -> String;

    /// Its parts on a GPU, if it lies there. The products then decode it into a workspace, and do not ask for
    /// [`FrozenMatrix::source`].
    fn on_gpu(&self) -> Option<GpuWeight<'_>> {
        None
    }

    /// The same matrix on another device; `None` where it lies there already, or knows no way.
    fn to_device(&self, _device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        Ok(None)
    }

    /// An override of `x Wᵀ` (without bias) for formats whose forward is not a plain product, such as LLM.int8().
    fn forward(&self, _x: &Tensor) -> Option<Result<Tensor>> {
        None
    }
}

/// `x (rows, in_features) Wᵀ + bias (out_features)`: `(rows, out_features)` in the dtype of `x`.
///
/// Nothing of `x` is saved: the backward pass reads the weight again, transposed. Fails if the shapes do not fit.
pub fn frozen_linear<'m>(tape: &Tape<'m>, x: &Var, w: &'m dyn FrozenMatrix, bias: Option<&Var>) -> Result<Var> {
    let (n, k) = w.dims();
    product::check_input("frozen_linear", x.value(), k)?;
    product::check_bias("frozen_linear", bias.map(Var::value), n)?;
    if x.value().gpu().is_some() {
        let [y] = lora_linears(tape, x, [Layer { w, bias, lora: None }])?;
        return Ok(y);
    }
    let y = product::frozen_forward(&Left::new(x.value()), w, bias.map(Var::value))?;
    let (dtype, shape) = (x.value().dtype(), x.value().shape().to_vec());
    let none = no_bias();
    Ok(tape.record("frozen_linear", [x, bias.unwrap_or(&none)], y, move |dy, [x, bias]| {
        let dx = x.then(|| product::backward_x(1.0, &Left::new(&dy), &*w.source(), dtype).reshape(&shape));
        Ok([dx.transpose()?, bias.then(|| product::backward_bias(&dy))])
    }))
}
