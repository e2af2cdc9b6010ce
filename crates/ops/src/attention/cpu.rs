use super::blocks::{Activation, Inputs, Matrix, Piece, QUERIES, blocks, deal, multiply};
use crate::{
    exp::exp,
    lanes::{max, sum},
};
use halfbyte_tensor::{store_f32, vectorised};
use rayon::prelude::*;

/// Writes `y`, and `lse (batch * heads, time)`: the logarithm of each row's sum of exponentials.
pub(super) fn forward<T: Activation>(inputs: &Inputs<'_, T>, lengths: &[usize], y: &mut [T], lse: &mut [f32]) {
    let shape = &inputs.shape;
    let pieces = deal(Some(y), shape, inputs.width());
    let lse = lse.par_chunks_mut(shape.group() * shape.time);
    pieces.into_par_iter().zip(lse).enumerate().with_max_len(1).for_each(|(i, (mut y, lse))| {
        attend(inputs, inputs.piece(i), lengths[i / shape.kv_heads], (&mut y, lse));
    });
}

fn attend<T: Activation>(inputs: &Inputs<'_, T>, piece: Piece, length: usize, (y, lse): (&mut [&mut [T]], &mut [f32])) {
    let d = inputs.shape.head_dim;
    let (y, padding) = y.split_at_mut(length);
    padding.iter_mut().for_each(|row| row.fill(T::default()));
    let k = inputs.keys(inputs.k, piece, inputs.start + length);
    let v = inputs.keys(inputs.v, piece, inputs.start + length);
    let (mut q, mut scores, mut state) = (Vec::new(), Vec::new(), Softmax::default());
    for block in blocks(length, QUERIES) {
        inputs.queries(inputs.q, piece, block.clone(), &mut q);
        let rows = q.len() / d;
        state.reset(rows, d);
        for keys in inputs.key_blocks(&block) {
            scores.resize(rows * keys.len(), 0.0);
            let some = keys.start * d..keys.end * d;
            let scale = (inputs.shape.scale, false);
            multiply::<T, _, _>((Matrix::new(&q, d), Matrix::new(&k[some.clone()], d).t()), scale, &mut scores);
            vectorised!({
                for (r, row) in scores.chunks_mut(keys.len()).enumerate() {
                    let visible = inputs.visible_in(block.start + r % block.len(), &keys);
                    row[..visible.start].fill(0.0);
                    row[visible.end..].fill(0.0);
                    state.absorb(r, &mut row[visible], d);
                }
            });
            let p = Matrix::new(&scores, keys.len());
            multiply::<T, _, _>((p, Matrix::new(&v[some], d)), (1.0, true), &mut state.sums);
        }
        vectorised!({
            for (r, sums) in state.sums.chunks_mut(d).enumerate() {
                let (h, i) = (r / block.len(), block.start + r % block.len());
                let inverse = 1.0 / state.totals[r];
                sums.iter_mut().for_each(|v| *v *= inverse);
                store_f32(sums, &mut y[i][h * d..][..d]);
                lse[h * inputs.shape.time + i] = state.maxima[r] + state.totals[r].ln();
            }
        });
    }
}

/// The running state of a block's softmax: for each row the largest score so far, and relative to it the sum of
/// exponentials and the weighted sum of values.
#[derive(Default)]
struct Softmax {
    maxima: Vec<f32>,
    totals: Vec<f32>,
    sums: Vec<f32>,
}

impl Softmax {
    fn reset(&mut self, rows: usize, d: usize) {
        self.maxima.clear();
        self.maxima.resize(rows, f32::NEG_INFINITY);
        self.totals.clear();
        self.totals.resize(rows, 0.0);
        self.sums.clear();
        self.sums.resize(rows * d, 0.0);
    }

    /// Turns visible scores of row `r` into exponentials relative to the new maximum, and rescales what was before.
    #[inline(always)]
    fn absorb(&mut self, r: usize, scores: &mut [f32], d: usize) {
        if scores.is_empty() {
            return;
        }
        let (before, here) = (self.maxima[r], max(scores));
        let maximum = if here > before { here } else { before };
        scores.iter_mut().for_each(|v| *v = exp(*v - maximum));
        let total = sum(scores);
        if maximum == before {
            self.totals[r] += total;
            return;
        }
        let shrink = exp(before - maximum);
        self.maxima[r] = maximum;
        self.totals[r] = self.totals[r] * shrink + total;
        self.sums[r * d..][..d].iter_mut().for_each(|v| *v *= shrink);
    }
}
