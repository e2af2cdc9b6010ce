//! A few queries against a long cache: too little work for blocked products, so every key and value is read once, where
//! it lies, for all query heads that share it.

use super::blocks::Inputs;
use crate::{
    exp::exp,
    lanes::{axpy, dot, max, sum},
    layout::Segment,
};
use halfbyte_tensor::{Float, load_f32, store_f32, vectorised};
use rayon::prelude::*;

/// Up to so many queries this beats blocks.
pub(super) const MAX_QUERIES: usize = 4;
/// Below so many multiplications a query stays on one thread.
const SMALL: usize = 1 << 18;

pub(super) fn forward<T: Float>(inputs: &Inputs<'_, T>, y: &mut [T]) {
    let shape = inputs.shape;
    let columns = shape.heads * shape.head_dim;
    let places = inputs.layout.segments().iter().flat_map(|it| (0..it.count).map(move |i| (*it, i)));
    for ((segment, i), row) in places.zip(y.chunks_mut(columns)) {
        let attend = |(head, y): (usize, &mut [T])| vectorised!(attend(inputs, (segment, i), head, y));
        if (segment.past + i) * columns < SMALL {
            row.chunks_mut(inputs.width()).enumerate().for_each(attend);
        } else {
            row.par_chunks_mut(inputs.width()).enumerate().with_max_len(1).for_each(attend);
        }
    }
}

/// Query `i` of a sequence, for all query heads of key/value head `head`: `y (group * head_dim)`.
#[inline(always)]
fn attend<T: Float>(inputs: &Inputs<'_, T>, (segment, i): (Segment, usize), head: usize, y: &mut [T]) {
    let (d, stride) = (inputs.shape.head_dim, inputs.shape.kv_heads * inputs.shape.head_dim);
    let end = segment.past + i + 1;
    let first = inputs.shape.window.map_or(0, |it| end.saturating_sub(it));
    let count = end - first;
    let mut q = vec![0.0; y.len()];
    load_f32(&inputs.q[(segment.first + i) * inputs.shape.heads * d + head * y.len()..][..y.len()], &mut q);
    q.iter_mut().for_each(|it| *it *= inputs.shape.scale);
    let mut scores = vec![0.0; count * y.len() / d];
    let mut row = vec![0.0; d];
    for (from, run) in inputs.runs(inputs.k, segment, first..end) {
        for (j, key) in run.chunks(stride).enumerate() {
            load_f32(&key[head * d..][..d], &mut row);
            for (scores, q) in scores.chunks_mut(count).zip(q.chunks(d)) {
                scores[from - first + j] = dot(q, &row);
            }
        }
    }
    for (h, scores) in scores.chunks_mut(count).enumerate() {
        inputs.shape.bend(scores);
        let sink = inputs.sinks.map(|it| it[head * inputs.shape.group() + h]);
        let maximum = sink.map_or(max(scores), |it| it.max(max(scores)));
        scores.iter_mut().for_each(|it| *it = exp(*it - maximum));
        let inverse = 1.0 / (sum(scores) + sink.map_or(0.0, |it| exp(it - maximum)));
        scores.iter_mut().for_each(|it| *it *= inverse);
    }
    let mut sums = vec![0.0; y.len()];
    for (from, run) in inputs.runs(inputs.v, segment, first..end) {
        for (j, value) in run.chunks(stride).enumerate() {
            load_f32(&value[head * d..][..d], &mut row);
            for (sums, scores) in sums.chunks_mut(d).zip(scores.chunks(count)) {
                axpy(sums, scores[from - first + j], &row);
            }
        }
    }
    store_f32(&sums, y);
}
