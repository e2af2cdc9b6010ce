use super::Gate;
use crate::{add::cpu::CHUNK, exp::sigmoid};
use halfbyte_tensor::{Float, load_f32, store_f32, vectorised};
use rayon::prelude::*;

/// Elements that are widened at once.
const PIECE: usize = 256;
/// 2 sqrt(2 / pi).
const SLOPE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

/// `v(x)` and its derivative, and what becomes of the operands before.
trait Function: Copy + Sync {
    fn argument(self, x: f32) -> (f32, f32);

    /// Gate and up as they are multiplied, and whether each changes with what it was: 1 or 0.
    #[inline(always)]
    fn operands(self, gate: f32, up: f32) -> ([f32; 2], [f32; 2]) {
        ([gate, up], [1.0; 2])
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn argument(self, x: f32) -> (f32, f32) {
        (x, 1.0)
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    fn argument(self, x: f32) -> (f32, f32) {
        (SLOPE * (x + CUBIC * x * x * x), SLOPE * (1.0 + 3.0 * CUBIC * x * x))
    }
}

#[derive(Clone, Copy)]
struct Clamped {
    alpha: f32,
    limit: f32,
}

impl Function for Clamped {
    #[inline(always)]
    fn argument(self, x: f32) -> (f32, f32) {
        (self.alpha * x, self.alpha)
    }

    #[inline(always)]
    fn operands(self, gate: f32, up: f32) -> ([f32; 2], [f32; 2]) {
        let within = |it: bool| if it { 1.0 } else { 0.0 };
        // Spelled out, since what is no number has to stay so.
        let top = if gate > self.limit { self.limit } else { gate };
        let middle = if up > self.limit { self.limit } else { up };
        let middle = if middle < -self.limit { -self.limit } else { middle };
        ([top, middle + 1.0], [within(gate <= self.limit), within(up.abs() <= self.limit)])
    }
}

pub(super) fn forward<T: Float>(inputs: [&[T]; 2], f: Gate, y: &mut [T]) {
    match f {
        Gate::Silu => forward_of(inputs, Silu, y),
        Gate::GeluTanh => forward_of(inputs, GeluTanh, y),
        Gate::Clamped { alpha, limit } => forward_of(inputs, Clamped { alpha, limit }, y),
    }
}

fn forward_of<T: Float>([gate, up]: [&[T]; 2], f: impl Function, y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, g), u)| {
        vectorised!({
            for ((y, g), u) in y.chunks_mut(PIECE).zip(g.chunks(PIECE)).zip(u.chunks(PIECE)) {
                let mut wide = [[0.0; PIECE]; 2];
                [g, u].into_iter().zip(&mut wide).for_each(|(from, to)| load_f32(from, to));
                let [g, u] = &mut wide;
                for (g, u) in g.iter_mut().zip(u.iter_mut()) {
                    let [gate, up] = f.operands(*g, *u).0;
                    (*g, *u) = (gate * sigmoid(f.argument(gate).0), up);
                }
                // The activation is rounded before it is multiplied, as two modules in sequence do.
                store_f32(g, y);
                load_f32(y, g);
                g.iter_mut().zip(u).for_each(|(g, u)| *g *= *u);
                store_f32(g, y);
            }
        })
    });
}

pub(super) fn backward<T: Float>(inputs: [&[T]; 3], f: Gate, dg: &mut [T], du: &mut [T]) {
    match f {
        Gate::Silu => backward_of(inputs, Silu, [dg, du]),
        Gate::GeluTanh => backward_of(inputs, GeluTanh, [dg, du]),
        Gate::Clamped { alpha, limit } => backward_of(inputs, Clamped { alpha, limit }, [dg, du]),
    }
}

fn backward_of<T: Float>([dy, gate, up]: [&[T]; 3], f: impl Function, [dg, du]: [&mut [T]; 2]) {
    let grads = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
    let saved = dy.par_chunks(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
    grads.zip(saved).for_each(|((dg, du), ((dy, g), u))| {
        vectorised!({
            let pieces = dg.chunks_mut(PIECE).zip(du.chunks_mut(PIECE));
            let saved = dy.chunks(PIECE).zip(g.chunks(PIECE)).zip(u.chunks(PIECE));
            for ((dg, du), ((dy, g), u)) in pieces.zip(saved) {
                let mut wide = [[0.0; PIECE]; 3];
                [dy, g, u].into_iter().zip(&mut wide).for_each(|(from, to)| load_f32(from, to));
                let [dy, g, u] = &mut wide;
                differentiate(f, dy, g, u);
                store_f32(g, dg);
                store_f32(u, du);
            }
        })
    });
}

/// With `s = sigmoid(v(g))`: `du = dy g s` in the place of `u`, and `dg = dy u s (1 + g (1 - s) v'(g))` in that of `g`; 0 where a limit holds.
///
/// On arrays of f32, since loops over so many slices of 16-bit numbers do not vectorise.
#[inline(always)]
fn differentiate(f: impl Function, dy: &[f32; PIECE], g: &mut [f32; PIECE], u: &mut [f32; PIECE]) {
    for i in 0..PIECE {
        let ([gate, up], within) = f.operands(g[i], u[i]);
        let (v, slope) = f.argument(gate);
        let s = sigmoid(v);
        g[i] = within[0] * (dy[i] * up * s * (1.0 + gate * (1.0 - s) * slope));
        u[i] = within[1] * (dy[i] * gate * s);
    }
}
