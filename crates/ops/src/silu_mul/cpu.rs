use crate::{add::cpu::CHUNK, exp::sigmoid};
use halfbyte_tensor::Float;
use rayon::prelude::*;

pub(super) fn forward<T: Float>(gate: &[T], up: &[T], y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, g), u)| {
        for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
            let g = g.to_f32();
            let silu = T::from_f32(g * sigmoid(g)).to_f32();
            *y = T::from_f32(silu * u.to_f32());
        }
    });
}

/// With `s = sigmoid(g)`: `du = dy g s` and `dg = dy u s (1 + g (1 - s))`.
pub(super) fn backward<T: Float>([dy, gate, up]: [&[T]; 3], dg: &mut [T], du: &mut [T]) {
    let grads = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
    let saved = dy.par_chunks(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
    grads.zip(saved).for_each(|((dg, du), ((dy, g), u))| {
        for (((dg, du), dy), (g, u)) in dg.iter_mut().zip(du).zip(dy).zip(g.iter().zip(u)) {
            let (dy, g, u) = (dy.to_f32(), g.to_f32(), u.to_f32());
            let s = sigmoid(g);
            *du = T::from_f32(dy * g * s);
            *dg = T::from_f32(dy * u * s * (1.0 + g * (1.0 - s)));
        }
    });
}
