use super::blocks::{Activation, Inputs, Matrix, Piece, QUERIES, blocks, deal, multiply};
use crate::{exp::exp, lanes::dot};
use halfbyte_tensor::{load_f32, store_f32, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// What the backward pass reads.
pub(super) struct Saved<'a, T> {
    pub(super) inputs: Inputs<'a, T>,
    pub(super) y: &'a [T],
    pub(super) dy: &'a [T],
    pub(super) lse: &'a [f32],
}

/// The rows of a piece in each gradient; none where a gradient is not wanted.
struct Gradients<'a, T> {
    dq: Vec<&'a mut [T]>,
    dk: Vec<&'a mut [T]>,
    dv: Vec<&'a mut [T]>,
}

/// Writes those of dq, dk and dv that are given.
///
/// With `P = exp(scale q kᵀ - lse)` and `D = rowsum(dy y)`: `dv = Pᵀ dy`, `dS = scale P (dy vᵀ - D)`, times `1 - (score / cap)^2` where there is a cap, `dq = dS k` and
/// `dk = dSᵀ q`.
pub(super) fn backward<T: Activation>(saved: &Saved<'_, T>, [dq, dk, dv]: [Option<&mut [T]>; 3]) {
    let (shape, of) = (saved.inputs.shape, (saved.inputs.layout, saved.inputs.shape.kv_heads));
    let dq = deal(dq, of, saved.inputs.width());
    let (dk, dv) = (deal(dk, of, shape.head_dim), deal(dv, of, shape.head_dim));
    let pieces: Vec<_> = dq.into_iter().zip(dk).zip(dv).map(|((dq, dk), dv)| Gradients { dq, dk, dv }).collect();
    pieces.into_par_iter().enumerate().with_max_len(1).for_each(|(i, gradients)| {
        Work::new(saved, i).run(gradients);
    });
}

/// One piece's operands, and sums in f32.
struct Work<'a, T> {
    saved: &'a Saved<'a, T>,
    piece: Piece,
    lse: &'a [f32],
    k: Vec<T>,
    v: Vec<T>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    block: Block<T>,
    scores: Vec<f32>,
    slopes: Vec<f32>,
    /// How scores change with what they were before their cap; empty where there is none.
    bends: Vec<f32>,
}

/// A block of queries: `(group * block, head_dim)` and one number a row.
#[derive(Default)]
struct Block<T> {
    q: Vec<T>,
    y: Vec<T>,
    dy: Vec<T>,
    dq: Vec<f32>,
    along: Vec<f32>,
}

impl<'a, T: Activation> Work<'a, T> {
    fn new(saved: &'a Saved<'a, T>, i: usize) -> Self {
        let (inputs, piece) = (&saved.inputs, saved.inputs.piece(i));
        // Numbers of a sequence lie together, those of a piece's query heads next to each other.
        let numbers = inputs.shape.group() * piece.segment.count;
        let first = inputs.shape.heads * piece.segment.first + i % inputs.shape.kv_heads * numbers;
        Work {
            saved,
            piece,
            lse: &saved.lse[first..][..numbers],
            k: inputs.keys(inputs.k, piece),
            v: inputs.keys(inputs.v, piece),
            dk: Vec::new(),
            dv: Vec::new(),
            block: Block::default(),
            scores: Vec::new(),
            slopes: Vec::new(),
            bends: Vec::new(),
        }
    }

    fn run(mut self, mut out: Gradients<'_, T>) {
        let d = self.saved.inputs.shape.head_dim;
        let wanted = |it: &[&mut [T]]| !it.is_empty();
        self.dk.resize(if wanted(&out.dk) { self.k.len() } else { 0 }, 0.0);
        self.dv.resize(if wanted(&out.dv) { self.v.len() } else { 0 }, 0.0);
        let window = self.saved.inputs.shape.window;
        for block in blocks(self.piece.segment.count, QUERIES) {
            self.load(&block, wanted(&out.dq));
            for keys in self.piece.key_blocks(&block, window) {
                self.step(&block, keys);
            }
            vectorised!({
                for (r, dq) in self.block.dq.chunks(d).enumerate() {
                    let (h, i) = (r / block.len(), block.start + r % block.len());
                    store_f32(dq, &mut out.dq[i][h * d..][..d]);
                }
            });
        }
        for (sums, rows) in [(&self.dk, &mut out.dk), (&self.dv, &mut out.dv)] {
            vectorised!({
                for (sum, row) in sums.chunks(d).zip(rows) {
                    store_f32(sum, row);
                }
            });
        }
    }

    fn load(&mut self, block: &Range<usize>, dq: bool) {
        let (inputs, d) = (&self.saved.inputs, self.saved.inputs.shape.head_dim);
        let it = &mut self.block;
        inputs.queries(self.saved.y, self.piece, block.clone(), &mut it.y);
        inputs.queries(self.saved.dy, self.piece, block.clone(), &mut it.dy);
        inputs.queries(inputs.q, self.piece, block.clone(), &mut it.q);
        it.along.clear();
        vectorised!({
            let mut wide = [vec![0.0; d], vec![0.0; d]];
            for (dy, y) in it.dy.chunks(d).zip(it.y.chunks(d)) {
                let [a, b] = &mut wide;
                load_f32(dy, a);
                load_f32(y, b);
                it.along.push(dot(a, b));
            }
        });
        it.dq.clear();
        it.dq.resize(if dq { it.q.len() } else { 0 }, 0.0);
    }

    fn step(&mut self, block: &Range<usize>, keys: Range<usize>) {
        let shape = self.saved.inputs.shape;
        let (d, width) = (shape.head_dim, keys.len());
        let some = keys.start * d..keys.end * d;
        let it = &mut self.block;
        self.scores.resize(it.along.len() * width, 0.0);
        let k = Matrix::new(&self.k[some.clone()], d);
        multiply::<T, _, _>((Matrix::new(&it.q, d), k.t()), (shape.scale, false), &mut self.scores);
        self.bends.resize(if shape.cap.is_some() { self.scores.len() } else { 0 }, 0.0);
        if let Some(cap) = shape.cap {
            vectorised!({
                shape.bend(&mut self.scores);
                self.bends.iter_mut().zip(&self.scores).for_each(|(b, s)| *b = 1.0 - (s / cap) * (s / cap));
            });
        }
        vectorised!({
            for (r, row) in self.scores.chunks_mut(width).enumerate() {
                let (h, i) = (r / block.len(), block.start + r % block.len());
                let lse = self.lse[h * self.piece.segment.count + i];
                let visible = self.piece.visible_in(i, shape.window, &keys);
                row[..visible.start].fill(0.0);
                row[visible.end..].fill(0.0);
                row[visible].iter_mut().for_each(|v| *v = exp(*v - lse));
            }
        });
        if !self.dv.is_empty() {
            let p = Matrix::new(&self.scores, width);
            multiply::<T, _, _>((p.t(), Matrix::new(&it.dy, d)), (1.0, true), &mut self.dv[some.clone()]);
        }
        if it.dq.is_empty() && self.dk.is_empty() {
            return;
        }
        self.slopes.resize(self.scores.len(), 0.0);
        let v = Matrix::new(&self.v[some.clone()], d);
        multiply::<T, _, _>((Matrix::new(&it.dy, d), v.t()), (1.0, false), &mut self.slopes);
        let rows = self.slopes.chunks_mut(width).zip(self.scores.chunks(width)).zip(&it.along);
        vectorised!({
            for ((slopes, p), along) in rows {
                slopes.iter_mut().zip(p).for_each(|(s, p)| *s = shape.scale * p * (*s - along));
            }
        });
        vectorised!({
            self.slopes.iter_mut().zip(&self.bends).for_each(|(s, b)| *s *= b);
        });
        let slopes = Matrix::new(&self.slopes, width);
        if !it.dq.is_empty() {
            multiply::<T, _, _>((slopes, k), (1.0, true), &mut it.dq);
        }
        if !self.dk.is_empty() {
            multiply::<T, _, _>((slopes.t(), Matrix::new(&it.q, d)), (1.0, true), &mut self.dk[some]);
        }
    }
}
