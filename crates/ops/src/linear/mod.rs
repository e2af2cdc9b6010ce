//! `y = x Wᵀ + b` for a weight that trains.

mod cuda;
#[cfg(test)]
mod tests;

use crate::product::{self, Left};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Tensor};

/// `x (rows, k)` times the transpose of `w (n, k)`, plus `bias (n)`: `(rows, n)` in the dtype of `x`.
///
/// The product rounds an f32 master weight while it reads it, so there is no cast copy; gradients of `w` and `bias` are
/// f32. Fails if the shapes do not fit or a dtype is not floating-point.
pub fn linear(tape: &Tape<'_>, x: &Var, w: &Var, bias: Option<&Var>) -> Result<Var> {
    let (n, k) = product::check_matrix("linear", w.value())?;
    product::check_input("linear", x.value(), k)?;
    product::check_bias("linear", bias.map(Var::value), n)?;
    let on_gpu = x.value().gpu().is_some();
    let y = if on_gpu {
        cuda::forward(x.value(), w.value(), bias.map(Var::value))?
    } else {
        product::forward(&Left::new(x.value()), &*product::source(w.value()), bias.map(Var::value), x.value().dtype())
    };
    let (dtype, shape) = (x.value().dtype(), x.value().shape().to_vec());
    let saved_x = w.requires_grad().then(|| x.keep());
    let saved_w = x.requires_grad().then(|| w.value().clone());
    let none = no_bias();
    Ok(tape.record("linear", [x, w, bias.unwrap_or(&none)], y, move |dy, [_, _, bias]| {
        if on_gpu {
            let dx = saved_w.map(|w| cuda::input_gradient(&dy, &w)?.reshape(&shape)).transpose()?;
            let dw = match saved_x {
                Some(x) => Some(cuda::weight_gradient(&dy, &x.value()?)?),
                None => None,
            };
            return Ok([dx, dw, bias.then(|| cuda::bias_gradient(&dy)).transpose()?]);
        }
        let dx =
            saved_w.map(|w| product::backward_x(1.0, &Left::new(&dy), &*product::source(&w), dtype).reshape(&shape));
        let dw: Option<Result<Tensor>> = saved_x.map(|x| Ok(product::backward_w(1.0, &dy, &x.value()?, dtype)));
        Ok([dx.transpose()?, dw.transpose()?, bias.then(|| product::backward_bias(&dy))])
    }))
}

/// Stands for an absent bias among the parents of an op.
pub(crate) fn no_bias() -> Var {
    Var::constant(Tensor::zeros(&[0], DType::F32))
}
