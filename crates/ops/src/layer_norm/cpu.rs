use crate::{
    lanes::{add_up, dot, sum, sum_by},
    rms_norm::cpu::ROWS,
};
use halfbyte_tensor::{Float, load_f32, vectorised};
use rayon::prelude::*;

pub(super) struct Affine<'a> {
    pub(super) w: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) eps: f32,
}

/// What the backward pass reads; `stats` holds `(mean, 1 / sqrt(var + eps))` of each row.
pub(super) struct Saved<'a, T> {
    pub(super) x: &'a [T],
    pub(super) w: &'a [f32],
    pub(super) stats: &'a [f32],
}

pub(super) fn forward<T: Float>(x: &[T], affine: &Affine<'_>, y: &mut [T], stats: &mut [f32]) {
    let c = affine.w.len();
    let rows = y.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).zip(stats.par_chunks_mut(2 * ROWS));
    rows.for_each(|((y, x), stats)| {
        vectorised!({
            let mut wide = vec![0.0; c];
            for ((y, x), stats) in y.chunks_mut(c).zip(x.chunks(c)).zip(stats.chunks_mut(2)) {
                load_f32(x, &mut wide);
                let mean = sum(&wide) / c as f32;
                // Around the mean, in a second pass: the mean of the squares minus the square of the mean cancels.
                let variance = sum_by(&wide, &wide, |v, _| (v - mean) * (v - mean)) / c as f32;
                let rstd = 1.0 / (variance + affine.eps).sqrt();
                stats.copy_from_slice(&[mean, rstd]);
                for ((y, x), (w, b)) in y.iter_mut().zip(&wide).zip(affine.w.iter().zip(affine.b)) {
                    *y = T::from_f32((x - mean) * rstd * w + b);
                }
            }
        })
    });
}

/// With `h = (x - mean) rstd` and `g = dy w`: `dx = rstd (g - mean(g) - h mean(g h))`, and the sums over rows of `dy h`
/// and, after them, of `dy`; none of these unless `train`.
pub(super) fn backward<T: Float>(saved: &Saved<'_, T>, dy: &[T], dx: &mut [T], train: bool) -> Vec<f32> {
    let c = saved.w.len();
    let sums = if train { 2 * c } else { 0 };
    let rows = dx.par_chunks_mut(ROWS * c).zip(dy.par_chunks(ROWS * c)).enumerate();
    let partials: Vec<Vec<f32>> = rows
        .map(|(i, (dx, dy))| {
            vectorised!({
                let (mut h, mut g) = (vec![0.0; c], vec![0.0; c]);
                let mut partial = vec![0.0; sums];
                let (dw, db) = partial.split_at_mut(sums / 2);
                for (j, (dx, dy)) in dx.chunks_mut(c).zip(dy.chunks(c)).enumerate() {
                    let row = i * ROWS + j;
                    let (mean, rstd) = (saved.stats[2 * row], saved.stats[2 * row + 1]);
                    load_f32(&saved.x[row * c..][..c], &mut h);
                    load_f32(dy, &mut g);
                    h.iter_mut().for_each(|h| *h = (*h - mean) * rstd);
                    for ((dw, db), (g, h)) in dw.iter_mut().zip(db.iter_mut()).zip(g.iter().zip(&h)) {
                        *dw += g * h;
                        *db += g;
                    }
                    g.iter_mut().zip(saved.w).for_each(|(g, w)| *g *= w);
                    let (along, level) = (dot(&g, &h) / c as f32, sum(&g) / c as f32);
                    for ((dx, g), h) in dx.iter_mut().zip(&g).zip(&h) {
                        *dx = T::from_f32(rstd * (g - level - h * along));
                    }
                }
                partial
            })
        })
        .collect();
    add_up(&partials, sums)
}
