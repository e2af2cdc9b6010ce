//! GPT-Neo's activation: `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Tensor, with_float};

/// The activation, in the shape and dtype of `x`, rounded once. Saves `x` only; who needs the output later
/// computes it again from that.
pub fn gelu_new(tape: &Tape<'_>, x: &Var) -> Result<Var> {
    let value = x.value().clone();
    crate::product::check_float("gelu_new", &value)?;
    let y = forward(&value)?;
    let again = {
        let value = value.clone();
        move || forward(&value)
    };
    let y = tape.record("gelu_new", [x], y, move |dy, _| {
        if value.gpu().is_some() {
            return Ok([Some(cuda::backward(&dy, &value)?)]);
        }
        let mut dx = Tensor::scratch(value.shape(), value.dtype());
        with_float!(dx.dtype(), T, cpu::backward::<T>(dy.data(), value.data(), dx.data_mut()));
        Ok([Some(dx)])
    });
    Ok(y.recomputed_by(again))
}

fn forward(x: &Tensor) -> Result<Tensor> {
    if x.gpu().is_some() {
        return Ok(cuda::forward(x)?);
    }
    let mut y = Tensor::scratch(x.shape(), x.dtype());
    with_float!(y.dtype(), T, cpu::forward::<T>(x.data(), y.data_mut()));
    Ok(y)
}
