use super::Gate;
use crate::{add::cpu::CHUNK, exp::sigmoid};
use halfbyte_tensor::{Float, load_f32, store_f32, vectorised};
use rayon::prelude::*;

/// Elements that are widened at once.
const PIECE: usize = 256;
/// 2 sqrt(2 / pi).
const SLOPE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

/// `v(x)` and its derivative.
#[inline(always)]
fn argument<const GELU: bool>(x: f32) -> (f32, f32) {
    if GELU { (SLOPE * (x + CUBIC * x * x * x), SLOPE * (1.0 + 3.0 * CUBIC * x * x)) } else { (x, 1.0) }
}

pub(super) fn forward<T: Float>(inputs: [&[T]; 2], f: Gate, y: &mut [T]) {
    match f {
        Gate::Silu => forward_of::<T, false>(inputs, y),
        Gate::GeluTanh => forward_of::<T, true>(inputs, y),
    }
}

fn forward_of<T: Float, const GELU: bool>([gate, up]: [&[T]; 2], y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, g), u)| {
        vectorised!({
            for ((y, g), u) in y.chunks_mut(PIECE).zip(g.chunks(PIECE)).zip(u.chunks(PIECE)) {
                let mut wide = [[0.0; PIECE]; 2];
                [g, u].into_iter().zip(&mut wide).for_each(|(from, to)| load_f32(from, to));
                let [g, u] = &mut wide;
                g.iter_mut().for_each(|g| *g *= sigmoid(argument::<GELU>(*g).0));
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
        Gate::Silu => backward_of::<T, false>(inputs, dg, du),
        Gate::GeluTanh => backward_of::<T, true>(inputs, dg, du),
    }
}

fn backward_of<T: Float, const GELU: bool>([dy, gate, up]: [&[T]; 3], dg: &mut [T], du: &mut [T]) {
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
                differentiate::<GELU>(dy, g, u);
                store_f32(g, dg);
                store_f32(u, du);
            }
        })
    });
}

/// With `s = sigmoid(v(g))`: `du = dy g s` in the place of `u`, and `dg = dy u s (1 + g (1 - s) v'(g))` in that of `g`.
///
/// On arrays of f32, since loops over so many slices of 16-bit numbers do not vectorise.
#[inline(always)]
fn differentiate<const GELU: bool>(dy: &[f32; PIECE], g: &mut [f32; PIECE], u: &mut [f32; PIECE]) {
    for i in 0..PIECE {
        let (v, slope) = argument::<GELU>(g[i]);
        let s = sigmoid(v);
        let du = dy[i] * g[i] * s;
        g[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s) * slope);
        u[i] = du;
    }
}
