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
use halfbyte_tensor::{Device, Tensor, with_float};

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
    // What comes before the gradient of the gate is turned into it where it lies.
    let before = places[0].passed_on();
    let mut ys = tape.record_many_in_rows("gated", &[gate, up], vec![y], move |mut dys, needs| {
        let Some(dy) = dys.pop().flatten() else { unreachable!("one output, which has a gradient") };
        let [dg, du] = backward(dy, [g, u], (f, &places))?;
        Ok(vec![needs[0].then_some(dg), needs[1].then_some(du)])
    });
    let y = ys.pop().unwrap_or_else(|| unreachable!("one output, one variable")).wanting(before);
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

/// The gradients of gate and up, at their places. On a GPU that of the gate is written over `dy`, if that lies as is wanted and nobody else
/// holds it; and the other over `up`, where it need not lie beside the first.
fn backward(dy: Tensor, [gate, up]: [Tensor; 2], (f, places): (Gate, &[GradientPlace; 2])) -> Result<[Tensor; 2]> {
    let whole = (gate.cols() * gate.dtype().size()).is_multiple_of(16);
    let lies_there = !dy.is_dense() || places[0].room() == 0;
    if let Device::Cuda(gpu) = gate.device()
        && whole
        && lies_there
        && !dy.is_shared()
    {
        let over_up = places[1].stands_alone() && up.is_dense() && !up.is_shared();
        let (up, mut du) = match over_up {
            true => (None, up),
            false => {
                let du = places[1].scratch(&up);
                (Some(up), du)
            }
        };
        let mut dg = dy;
        cuda::backward_over(&gpu, (&gate, up.as_ref()), f, [&mut dg, &mut du])?;
        gpu.count_operations(12 * gate.len() as u64);
        return Ok([dg, du]);
    }
    let (dy, gate, up) = (&dy.dense(), &gate, &up);
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
