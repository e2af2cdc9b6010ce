use super::Gelu;
use crate::{
    add::cpu::CHUNK,
    exp::{exp, sigmoid},
};
use halfbyte_tensor::{Float, vectorised};
use rayon::prelude::*;

/// 2 sqrt(2 / pi).
const SLOPE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

/// `0.5 (1 + tanh(u)) = sigmoid(2u)`: one exponential, and nothing cancels where `tanh` nears -1.
#[inline(always)]
fn nearly_below(x: f32) -> f32 {
    sigmoid(SLOPE * (x + CUBIC * x * x * x))
}

/// The normal distribution: how likely a draw is below `x`, and its density there.
///
/// For `z = |x| / sqrt(2)`, `erfc(z) = exp(-z^2) f(t)` with `t = 1 / (1 + z / 2)`, and `f(t) / t` is interpolated at the Chebyshev nodes
/// for z up to 10, beyond which the exponential is zero: off by 3e-7 of it.
#[inline(always)]
fn below(x: f32) -> (f32, f32) {
    const F: [f32; 9] = [
        0.282_082_68,
        0.282_445_04,
        0.242_572_89,
        0.204_853_65,
        -0.031_841_76,
        0.285_697_7,
        -0.493_863_64,
        0.287_768_3,
        -0.059_714_92,
    ];
    /// 1 / sqrt(2 pi).
    const DENSITY: f32 = 0.398_942_3;
    let far = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.5 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let mut f = F[8];
    for coefficient in F[..8].iter().rev() {
        f = f * t + coefficient;
    }
    let tail = 0.5 * far * f * t;
    (if x < 0.0 { tail } else { 1.0 - tail }, DENSITY * far)
}

pub(super) fn forward<T: Float>(x: &[T], kind: Gelu, y: &mut [T]) {
    match kind {
        Gelu::Tanh => forward_of::<T, false>(x, y),
        Gelu::Exact => forward_of::<T, true>(x, y),
    }
}

fn forward_of<T: Float, const EXACT: bool>(x: &[T], y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised!({
            for (y, x) in y.iter_mut().zip(x) {
                let x = x.to_f32();
                *y = T::from_f32(x * if EXACT { below(x).0 } else { nearly_below(x) });
            }
        })
    });
}

/// With `s(x)` the factor on `x`: `dx = dy (s + x s'(x))`.
pub(super) fn backward<T: Float>(dy: &[T], x: &[T], kind: Gelu, dx: &mut [T]) {
    match kind {
        Gelu::Tanh => backward_of::<T, false>(dy, x, dx),
        Gelu::Exact => backward_of::<T, true>(dy, x, dx),
    }
}

fn backward_of<T: Float, const EXACT: bool>(dy: &[T], x: &[T], dx: &mut [T]) {
    dx.par_chunks_mut(CHUNK).zip(dy.par_chunks(CHUNK)).zip(x.par_chunks(CHUNK)).for_each(|((dx, dy), x)| {
        vectorised!({
            for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                let x = x.to_f32();
                if EXACT {
                    let (s, slope) = below(x);
                    *dx = T::from_f32(dy.to_f32() * (s + x * slope));
                } else {
                    let s = nearly_below(x);
                    let slope = SLOPE * (1.0 + 3.0 * CUBIC * x * x);
                    *dx = T::from_f32(dy.to_f32() * s * (1.0 + x * (1.0 - s) * slope));
                }
            }
        })
    });
}
