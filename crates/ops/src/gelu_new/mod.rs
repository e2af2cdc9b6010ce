//! GPT-Neo's activation: `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.

mod cpu;
#[cfg(test)]
mod tests;

use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Tensor, with_float};

/// The activation, in the shape and dtype of `x`, rounded once. Saves `x` only.
pub fn gelu_new(tape: &Tape<'_>, x: &Var) -> Result<Var> {
    let value = x.value().clone();
    crate::product::check_float("gelu_new", &value)?;
    let mut y = Tensor::scratch(value.shape(), value.dtype());
    with_float!(y.dtype(), T, cpu::forward::<T>(value.data(), y.data_mut()));
    Ok(tape.record("gelu_new", [x], y, move |dy, _| {
        let mut dx = Tensor::scratch(value.shape(), value.dtype());
        with_float!(dx.dtype(), T, cpu::backward::<T>(dy.data(), value.data(), dx.data_mut()));
        Ok([Some(dx)])
    }))
}
