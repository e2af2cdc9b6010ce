//! `y = x Wᵀ + b` for a weight that trains.

mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    place::on_gpu,
    product::{self, Left, Right},
};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Tensor};

/// `x (rows, k)` times the transpose of `w (n, k)`, plus `bias (n)`: `(rows, n)` in the dtype of `x`.
///
/// The product rounds an f32 master weight while it reads it, so there is no cast copy on a CPU; gradients of `w` and `bias` are
/// f32. Fails if the shapes do not fit or a dtype is not floating-point.
pub fn linear(tape: &Tape<'_>, x: &Var, w: &Var, bias: Option<&Var>) -> Result<Var> {
    let (n, k) = product::check_matrix("linear", w.value())?;
    product::check_input("linear", x.value(), k)?;
    product::check_bias("linear", bias.map(Var::value), n)?;
    let y = forward(x.value(), w.value(), bias.map(Var::value))?;
    let (dtype, shape) = (x.value().dtype(), x.value().shape().to_vec());
    let saved_x = w.requires_grad().then(|| x.keep());
    let saved_w = x.requires_grad().then(|| w.value().clone());
    let none = no_bias();
    Ok(tape.record("linear", [x, w, bias.unwrap_or(&none)], y, move |dy, [_, _, bias]| {
        let dx = saved_w.map(|w| Ok(input_gradient(&dy, &w, dtype)?.reshape(&shape)?));
        let dx: Option<Result<Tensor>> = dx;
        let dw = saved_x.map(|x| weight_gradient(&dy, &x.value()?, dtype));
        Ok([dx.transpose()?, dw.transpose()?, bias.then(|| product::bias_gradient(&dy)).transpose()?])
    }))
}

fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if on_gpu(x) {
        return Ok(cuda::forward(x, w, bias)?);
    }
    product::forward(&Left::new(x), Right::Dense(w), bias, x.dtype())
}

/// `dy w` in the dtype of the activations.
fn input_gradient(dy: &Tensor, w: &Tensor, dtype: DType) -> Result<Tensor> {
    if on_gpu(dy) {
        return Ok(cuda::input_gradient(dy, w)?);
    }
    product::backward_x(1.0, &Left::new(dy), Right::Dense(w), dtype)
}

/// `dyᵀ x`, f32.
fn weight_gradient(dy: &Tensor, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if on_gpu(dy) {
        return Ok(cuda::weight_gradient(dy, x)?);
    }
    product::backward_w(1.0, dy, x, dtype)
}

/// Stands for an absent bias among the parents of an op.
pub(crate) fn no_bias() -> Var {
    Var::constant(Tensor::zeros(&[0], DType::F32))
}
