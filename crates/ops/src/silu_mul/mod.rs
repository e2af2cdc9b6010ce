//! The gate of LLaMA's MLP: `silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`, in one pass over memory.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::add::check_alike;
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Tensor, with_float};

/// `silu(gate) * up`, both of one shape and dtype. `silu(gate)` is rounded to that dtype first, as transformers does.
///
/// Saves the operands only; who needs the output later computes it again from them.
pub fn silu_mul(tape: &Tape<'_>, gate: &Var, up: &Var) -> Result<Var> {
    let (g, u) = (gate.value().clone(), up.value().clone());
    check_alike("silu_mul", &g, &u)?;
    let y = forward(&g, &u)?;
    let again = {
        let (g, u) = (g.clone(), u.clone());
        move || forward(&g, &u)
    };
    let y = tape.record("silu_mul", [gate, up], y, move |dy, [gate, up]| {
        if g.gpu().is_some() {
            let (dg, du) = cuda::backward(&dy, &g, &u)?;
            return Ok([gate.then_some(dg), up.then_some(du)]);
        }
        let mut dg = Tensor::scratch(g.shape(), g.dtype());
        let mut du = Tensor::scratch(g.shape(), g.dtype());
        with_float!(g.dtype(), T, {
            cpu::backward::<T>([dy.data(), g.data(), u.data()], dg.data_mut(), du.data_mut());
        });
        Ok([gate.then_some(dg), up.then_some(du)])
    });
    Ok(y.recomputed_by(again))
}

fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.gpu().is_some() {
        return Ok(cuda::forward(gate, up)?);
    }
    let mut y = Tensor::scratch(gate.shape(), gate.dtype());
    with_float!(y.dtype(), T, cpu::forward::<T>(gate.data(), up.data(), y.data_mut()));
    Ok(y)
}
