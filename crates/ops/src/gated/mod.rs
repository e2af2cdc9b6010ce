//! The gate of a decoder's MLP: `f(gate) * up`, in one pass over memory. `f(x) = x sigmoid(v(x))`, where `v(x) = x` is SiLU and
//! `v(x) = 2 sqrt(2 / pi) (x + 0.044715 x^3)` GELU by way of `tanh`. Or gpt-oss's `f(g) (u + 1)`, with `g` the gate but at most a limit, `u`
//! the other but within it on either side, and `v(x) = alpha x`.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    add::check_alike,
    place::{Cost, fill},
};
use halfbyte_autograd::{GradientPlace, Result, Tape, Var};
use halfbyte_tensor::{Tensor, with_float};

/// The function of a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// `x / (1 + exp(-x))`, LLaMA's.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, Gemma's.
    GeluTanh,
    /// gpt-oss's.
    Clamped {
        /// How steep the sigmoid is.
        alpha: f32,
        /// Beyond it nothing grows.
        limit: f32,
    },
}

/// `f(gate) * up`, both of one shape and dtype. `f(gate)` is rounded to that dtype first, as transformers does.
///
/// Saves the operands only; who needs the output later computes it again from them. Fails if shapes or dtypes differ.
pub fn gated(tape: &Tape<'_>, gate: &Var, up: &Var, f: Gate) -> Result<Var> {
    gated_with_room(tape, [gate, up], f, 0)
}

/// [`gated`] whose result has room for so many more columns beside its rows, on a GPU and if rows are whole pieces of 16 bytes.
pub fn gated_with_room(tape: &Tape<'_>, [gate, up]: [&Var; 2], f: Gate, room: usize) -> Result<Var> {
    let (g, u) = (gate.value().clone(), up.value().clone());
    check_alike("gated", &g, &u)?;
    let whole = |columns: usize| (columns * g.dtype().size()).is_multiple_of(16);
    let room = if whole(g.cols()) && whole(room) { room } else { 0 };
    let y = forward([&g, &u], f, room)?;
    let again = {
        let (g, u) = (g.clone(), u.clone());
        move || forward([&g, &u], f, room)
    };
    let places = match whole(g.cols()) {
        true => [gate, up].map(Var::claim_gradient_place),
        false => Default::default(),
    };
    let y = tape.record("gated", [gate, up], y, move |dy, [gate, up]| {
        let [dg, du] = backward(&dy, [&g, &u], (f, &places))?;
        Ok([gate.then_some(dg), up.then_some(du)])
    });
    Ok(tape.recomputed(y, again))
}

fn forward([gate, up]: [&Tensor; 2], f: Gate, room: usize) -> Result<Tensor> {
    let y = gate.scratch_with_room(gate.shape(), gate.dtype(), room);
    let cost = Cost::of(6, &[gate, up, &y]);
    let host = |y: &mut Tensor| {
        with_float!(gate.dtype(), T, cpu::forward::<T>([gate.data(), up.data()], f, y.data_mut()));
        Ok(())
    };
    fill(gate, cost, y, host, |gpu, y| cuda::forward(gpu, [gate, up], f, y))
}

/// The gradients of gate and up, at their places.
fn backward(dy: &Tensor, [gate, up]: [&Tensor; 2], (f, places): (Gate, &[GradientPlace; 2])) -> Result<[Tensor; 2]> {
    let grads = [places[0].scratch(gate), places[1].scratch(up)];
    let cost = Cost::of(12, &[gate, up, dy, &grads[0], &grads[1]]);
    let host = |[dg, du]: &mut [Tensor; 2]| {
        with_float!(gate.dtype(), T, {
            cpu::backward::<T>([dy.data(), gate.data(), up.data()], f, dg.data_mut(), du.data_mut());
        });
        Ok(())
    };
    fill(gate, cost, grads, host, |gpu, grads| cuda::backward(gpu, [dy, gate, up], f, grads))
}
