use super::RmsNorm;
use crate::lanes::{add_up, dot};
use halfbyte_tensor::{Float, load_f32, vectorised};
use rayon::prelude::*;
use std::borrow::Cow;

/// Rows a thread takes at once, and rows of one partial sum of a weight's gradient.
pub(crate) const ROWS: usize = 32;

/// What the backward pass reads.
pub(super) struct Saved<'a, T> {
    pub(super) x: &'a [T],
    pub(super) w: &'a [f32],
    pub(super) rstd: &'a [f32],
    pub(super) norm: RmsNorm,
}

impl RmsNorm {
    /// What the normalised values are multiplied with.
    fn factors<'a>(&self, w: &'a [f32]) -> Cow<'a, [f32]> {
        if self.offset == 0.0 { w.into() } else { w.iter().map(|w| w + self.offset).collect() }
    }
}

pub(super) fn forward<T: Float>(x: &[T], (w, norm): (&[f32], RmsNorm), y: &mut [T], rstd: &mut [f32]) {
    let (c, w) = (w.len(), &*norm.factors(w));
    let rows = y.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).zip(rstd.par_chunks_mut(ROWS));
    rows.for_each(|((y, x), rstd)| {
        vectorised!({
            let mut wide = vec![0.0; c];
            for ((y, x), rstd) in y.chunks_mut(c).zip(x.chunks(c)).zip(rstd) {
                load_f32(x, &mut wide);
                *rstd = 1.0 / (dot(&wide, &wide) / c as f32 + norm.eps).sqrt();
                for ((y, x), w) in y.iter_mut().zip(&wide).zip(w) {
                    let h = x * *rstd;
                    *y = T::from_f32(w * if norm.rounds_last { h } else { T::from_f32(h).to_f32() });
                }
            }
        })
    });
}

/// With `h = x rstd` and `g = dy (w + offset)`: `dx = rstd (g - h mean(g h))`, and `dw`, the sum over rows of `dy h`; empty unless
/// `train`.
pub(super) fn backward<T: Float>(saved: &Saved<'_, T>, dy: &[T], dx: &mut [T], train: bool) -> Vec<f32> {
    let (c, w, norm) = (saved.w.len(), &*saved.norm.factors(saved.w), saved.norm);
    let rows = dx.par_chunks_mut(ROWS * c).zip(dy.par_chunks(ROWS * c)).enumerate();
    let partials: Vec<Vec<f32>> = rows
        .map(|(i, (dx, dy))| {
            vectorised!({
                let (mut h, mut g) = (vec![0.0; c], vec![0.0; c]);
                let mut dw = vec![0.0; if train { c } else { 0 }];
                for (j, (dx, dy)) in dx.chunks_mut(c).zip(dy.chunks(c)).enumerate() {
                    let row = i * ROWS + j;
                    let rstd = saved.rstd[row];
                    load_f32(&saved.x[row * c..][..c], &mut h);
                    load_f32(dy, &mut g);
                    h.iter_mut().for_each(|h| *h *= rstd);
                    for ((dw, g), h) in dw.iter_mut().zip(&g).zip(&h) {
                        *dw += g * if norm.rounds_last { *h } else { T::from_f32(*h).to_f32() };
                    }
                    g.iter_mut().zip(w).for_each(|(g, w)| *g *= w);
                    let mean = dot(&g, &h) / c as f32;
                    for ((dx, g), h) in dx.iter_mut().zip(&g).zip(&h) {
                        *dx = T::from_f32(rstd * (g - h * mean));
                    }
                }
                dw
            })
        })
        .collect();
    add_up(&partials, if train { c } else { 0 })
}
