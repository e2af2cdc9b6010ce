//! GPT-Neo's activation: `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::place::{Cost, fill};
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
    let y = tape.record("gelu_new", [x], y, move |dy, _| Ok([Some(backward(&dy, &value)?)]));
    Ok(y.recomputed_by(again))
}

fn forward(x: &Tensor) -> Result<Tensor> {
    let y = x.scratch_like(x.shape(), x.dtype());
    let cost = Cost::of(12, &[x, &y]);
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, cpu::forward::<T>(x.data(), y.data_mut()));
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::forward(gpu, x, y))
}

fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let dx = x.scratch_like(x.shape(), x.dtype());
    let cost = Cost::of(20, &[x, dy, &dx]);
    let host = |dx: &mut Tensor| {
        with_float!(x.dtype(), T, cpu::backward::<T>(dy.data(), x.data(), dx.data_mut()));
        Ok(())
    };
    fill(x, cost, dx, host, |gpu, dx| cuda::backward(gpu, [dy, x], dx))
}
