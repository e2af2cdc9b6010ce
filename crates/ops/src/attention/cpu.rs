use super::blocks::{Activation, Inputs, Matrix, Piece, QUERIES, blocks, deal, deal_numbers, multiply};
use crate::{
    exp::exp,
    lanes::{max, sum},
};
use halfbyte_tensor::{store_f32, vectorised};
use rayon::prelude::*;

/// Writes `y`, and `lse (heads * tokens)`: the logarithm of each row's sum of exponentials.
pub(super) fn forward<T: Activation>(inputs: &Inputs<'_, T>, y: &mut [T], lse: &mut [f32]) {
    let (layout, shape) = (inputs.layout, inputs.shape);
    let pieces = deal(Some(y), (layout, shape.kv_heads), inputs.width());
    let lse = deal_numbers(lse, (layout, shape));
    pieces.into_par_iter().zip(lse).enumerate().with_max_len(1).for_each(|(i, (mut y, lse))| {
        attend(inputs, inputs.piece(i), (&mut y, lse));
    });
}

fn attend<T: Activation>(inputs: &Inputs<'_, T>, piece: Piece, (y, lse): (&mut [&mut [T]], &mut [f32])) {
    let (d, window, length) = (inputs.shape.head_dim, inputs.shape.window, piece.segment.count);
    let (k, v) = (inputs.keys(inputs.k, piece), inputs.keys(inputs.v, piece));
    let before = piece.first_block(window);
    let (mut q, mut scores, mut state) = (Vec::new(), Vec::new(), Softmax::default());
    for block in blocks(length, QUERIES) {
        inputs.queries(inputs.q, piece, block.clone(), &mut q);
        let rows = q.len() / d;
        state.reset(rows, d);
        if let Some(sinks) = inputs.sinks {
            let of_piece = &sinks[piece.head * inputs.shape.group()..];
            state.begin_with(|r| of_piece[r / block.len()]);
        }
        for keys in piece.key_blocks(&block, window) {
            scores.resize(rows * keys.len(), 0.0);
            let some = (keys.start - before) * d..(keys.end - before) * d;
            let scale = (inputs.shape.scale, false);
            multiply::<T, _, _>((Matrix::new(&q, d), Matrix::new(&k[some.clone()], d).t()), scale, &mut scores);
            vectorised!({
                for (r, row) in scores.chunks_mut(keys.len()).enumerate() {
                    let visible = piece.visible_in(block.start + r % block.len(), window, &keys);
                    row[..visible.start].fill(0.0);
                    row[visible.end..].fill(0.0);
                    inputs.shape.bend(&mut row[visible.clone()]);
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
                lse[h * length + i] = state.maxima[r] + state.totals[r].ln();
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

    /// Begins every row with a score that weighs nothing.
    fn begin_with(&mut self, sink: impl Fn(usize) -> f32) {
        self.maxima.iter_mut().enumerate().for_each(|(r, it)| *it = sink(r));
        self.totals.fill(1.0);
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
