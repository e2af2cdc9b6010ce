//! The activations of the GPTs: `x` times how likely a draw from the normal distribution is below it, or nearly that.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::place::{Cost, fill};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Tensor, with_float};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`: transformers' `gelu_new`.
    Tanh,
    /// `0.5 x (1 + erf(x / sqrt(2)))`: transformers' `gelu`.
    Exact,
}

/// The activation, in the shape and dtype of `x`, rounded once. Saves `x` only; who needs the output later
/// computes it again from that.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn gelu(tape: &Tape<'_>, x: &Var, kind: Gelu) -> Result<Var> {
    let value = x.value().clone();
    crate::product::check_float("gelu", &value)?;
    let y = forward(&value, kind)?;
    let again = {
        let value = value.clone();
        move || forward(&value, kind)
    };
    let y = tape.record("gelu", [x], y, move |dy, _| Ok([Some(backward(&dy, &value, kind)?)]));
    Ok(tape.recomputed(y, again))
}

fn forward(x: &Tensor, kind: Gelu) -> Result<Tensor> {
    let y = x.scratch_like(x.shape(), x.dtype());
    let cost = Cost::of(12, &[x, &y]);
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, cpu::forward::<T>(x.data(), kind, y.data_mut()));
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::forward(gpu, x, kind, y))
}

fn backward(dy: &Tensor, x: &Tensor, kind: Gelu) -> Result<Tensor> {
    let dx = x.scratch_like(x.shape(), x.dtype());
    let cost = Cost::of(20, &[x, dy, &dx]);
    let host = |dx: &mut Tensor| {
        with_float!(x.dtype(), T, cpu::backward::<T>(dy.data(), x.data(), kind, dx.data_mut()));
        Ok(())
    };
    fill(x, cost, dx, host, |gpu, dx| cuda::backward(gpu, [dy, x], kind, dx))
}
