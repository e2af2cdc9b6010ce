//! `0.5 (1 + tanh(u)) = sigmoid(2u)`: one exponential, and nothing cancels where `tanh` nears -1.

use crate::{add::cpu::CHUNK, exp::sigmoid};
use halfbyte_tensor::{Float, vectorised};
use rayon::prelude::*;

/// 2 sqrt(2 / pi).
const SLOPE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

pub(super) fn forward<T: Float>(x: &[T], y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised!({
            for (y, x) in y.iter_mut().zip(x) {
                let x = x.to_f32();
                *y = T::from_f32(x * sigmoid(SLOPE * (x + CUBIC * x * x * x)));
            }
        })
    });
}

/// With `s = sigmoid(v(x))`: `dx = dy s (1 + x (1 - s) v'(x))`.
pub(super) fn backward<T: Float>(dy: &[T], x: &[T], dx: &mut [T]) {
    dx.par_chunks_mut(CHUNK).zip(dy.par_chunks(CHUNK)).zip(x.par_chunks(CHUNK)).for_each(|((dx, dy), x)| {
        vectorised!({
            for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                let x = x.to_f32();
                let s = sigmoid(SLOPE * (x + CUBIC * x * x * x));
                let slope = SLOPE * (1.0 + 3.0 * CUBIC * x * x);
                *dx = T::from_f32(dy.to_f32() * s * (1.0 + x * (1.0 - s) * slope));
            }
        })
    });
}
