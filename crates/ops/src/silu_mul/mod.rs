//! The gate of LLaMA's MLP: `silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`, in one pass over memory.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    add::check_alike,
    place::{Cost, fill},
};
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
        let [dg, du] = backward(&dy, &g, &u)?;
        Ok([gate.then_some(dg), up.then_some(du)])
    });
    Ok(y.recomputed_by(again))
}

fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let y = gate.scratch_like(gate.shape(), gate.dtype());
    let cost = Cost::of(6, &[gate, up, &y]);
    let host = |y: &mut Tensor| {
        with_float!(gate.dtype(), T, cpu::forward::<T>(gate.data(), up.data(), y.data_mut()));
        Ok(())
    };
    fill(gate, cost, y, host, |gpu, y| cuda::forward(gpu, [gate, up], y))
}

/// The gradients of gate and up.
fn backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<[Tensor; 2]> {
    let grads = [gate, up].map(|it| it.scratch_like(it.shape(), it.dtype()));
    let cost = Cost::of(12, &[gate, up, dy, &grads[0], &grads[1]]);
    let host = |[dg, du]: &mut [Tensor; 2]| {
        with_float!(gate.dtype(), T, {
            cpu::backward::<T>([dy.data(), gate.data(), up.data()], dg.data_mut(), du.data_mut());
        });
        Ok(())
    };
    fill(gate, cost, grads, host, |gpu, grads| cuda::backward(gpu, [dy, gate, up], grads))
}
