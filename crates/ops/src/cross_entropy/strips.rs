//! The loss and the gradient of `h` under a head that does not train, a strip of the vocabulary at a time.
//!
//! As in attention with an online softmax: each row keeps the largest logit so far, the sum of exponentials relative to
//! it and the sum of the head's rows weighted by them; when a larger logit comes, both sums are scaled down. So logits
//! live for one strip only, and the gradient costs no pass over a finished softmax. The target's column stays out of the
//! weighted sum and joins at the end in f32, where `p - 1` does not cancel.

use super::softmax::{exp_in_place, maximum};
use super::{
    Shaping,
    cpu::{Job, Sums, gather, scatter},
};
use crate::{exp::exp, product};
use half::bf16;
use halfbyte_matmul::{Compute, Operand, Out, Product, Source, matmul};
use halfbyte_tensor::{DType, Tensor, store_f32, vectorised, with_float};
use rayon::prelude::*;

/// What is known of a row after some strips.
#[derive(Clone, Copy)]
struct Row {
    target: usize,
    /// The largest logit.
    max: f32,
    /// `sum_j exp(l_j - max)`.
    sum: f64,
    /// The target's logit, once its strip has passed.
    logit: f32,
}

impl Row {
    fn new(target: usize) -> Row {
        Row { target, max: f32::NEG_INFINITY, sum: 0.0, logit: f32::NAN }
    }

    /// Takes in a strip that begins at column `start`. Overwrites it with its exponentials relative to the largest logit,
    /// the target's with 0, and gives the factor that turns earlier ones into the same measure.
    #[inline(always)]
    fn take(&mut self, start: usize, strip: &mut [f32]) -> f32 {
        let here = self.target.checked_sub(start).filter(|it| *it < strip.len());
        if let Some(at) = here {
            self.logit = strip[at];
        }
        let largest = maximum(strip);
        let max = if largest > self.max { largest } else { self.max };
        // A strip of nothing but minus infinity adds nothing; a difference of infinities would be no number.
        let measure = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let shrink = if max > self.max { exp(self.max - measure) } else { 1.0 };
        self.sum = self.sum * f64::from(shrink) + exp_in_place(strip, measure);
        self.max = max;
        if let Some(at) = here {
            strip[at] = 0.0;
        }
        shrink
    }

    /// As [`Row::take`] of logits that are yet to be bent; leaves the exponentials times the slopes of their logits.
    #[inline(always)]
    fn take_shaped(&mut self, start: usize, strip: &mut [f32], shaping: Shaping) -> f32 {
        if shaping.cap.is_none() {
            return self.take(start, strip);
        }
        shaping.bend(strip);
        let slopes: Vec<f32> = strip.iter().map(|v| shaping.slope(*v)).collect();
        let shrink = self.take(start, strip);
        strip.iter_mut().zip(&slopes).for_each(|(v, slope)| *v *= slope);
        shrink
    }

    fn loss(&self) -> f64 {
        f64::from(self.max) - f64::from(self.logit) + self.sum.ln()
    }

    /// The target's probability less 1.
    fn surplus(&self) -> f32 {
        (f64::from(exp(self.logit - self.max)) / self.sum - 1.0) as f32
    }
}

impl Job<'_> {
    pub(super) fn run_strips(&self, (vocab, channels): (usize, usize)) -> Sums {
        let (kept, shaping) = (self.kept_dtype(), self.head.shaping);
        let dh = self.want_dh.then(|| Tensor::zeros(&[self.h.rows(), channels], kept));
        let mut found = Sums { loss: 0.0, dh, dw: None, db: None };
        let (at_once, width) = (self.at_once.strip.0.min(self.targets.rows().len()), self.at_once.strip.1.min(vocab));
        let (head, again) = (self.head.source(), self.want_dh.then(|| self.head.source()));
        let bias = self.head.bias_values();
        let mut logits = Tensor::scratch(&[at_once, width], DType::F32);
        for (rows, ids) in self.targets.rows().chunks(at_once).zip(self.targets.ids().chunks(at_once)) {
            let h = gather(self.h, rows);
            let h = product::Left::shared(&h);
            let mut states: Vec<Row> = ids.iter().map(|it| Row::new(*it as usize)).collect();
            let mut sums = Tensor::zeros(&[if self.want_dh { rows.len() } else { 0 }, channels], DType::F32);
            for start in (0..vocab).step_by(width) {
                let cols = width.min(vocab - start);
                let strip = &mut logits.data_mut::<f32>()[..rows.len() * cols];
                let w = Operand::new(&*head).rows(start, cols).t();
                let product = Product::new(h.operand(), w, self.compute());
                let accumulate = self.begin(bias.as_deref().map(|it| &it[start..][..cols]), strip);
                matmul(&Product { alpha: shaping.factor, accumulate, ..product }, Out::F32(strip));
                match &again {
                    Some(head) => {
                        self.weigh(&mut states, strip, Operand::new(&**head).rows(start, cols), (start, &mut sums))
                    }
                    None => strip.par_chunks_mut(cols).zip(&mut states).for_each(|(strip, row)| {
                        vectorised!({
                            shaping.bend(strip);
                            row.take(start, strip);
                        })
                    }),
                }
            }
            found.loss += states.iter().map(Row::loss).sum::<f64>();
            if let (Some(dh), Some(head)) = (&mut found.dh, &again) {
                self.finish(&states, &**head, &mut sums);
                scatter(&sums.to_dtype(kept), rows, dh);
            }
        }
        found
    }

    /// Takes in a strip and adds `exp(l - max) dl W` over its columns to the sums.
    fn weigh(&self, rows: &mut [Row], strip: &mut [f32], w: Operand<'_>, (start, sums): (usize, &mut Tensor)) {
        let (cols, channels, shaping) = (strip.len() / rows.len(), sums.cols(), self.head.shaping);
        let mut weights = Tensor::scratch(&[rows.len(), cols], self.kept_dtype());
        with_float!(weights.dtype(), T, {
            let all = strip.par_chunks_mut(cols).zip(rows);
            let all = all
                .zip(weights.data_mut::<T>().par_chunks_mut(cols))
                .zip(sums.data_mut::<f32>().par_chunks_mut(channels));
            all.for_each(|(((strip, row), weights), sums)| {
                vectorised!({
                    let shrink = row.take_shaped(start, strip, shaping);
                    if shrink != 1.0 {
                        sums.iter_mut().for_each(|v| *v *= shrink);
                    }
                    store_f32(strip, weights);
                })
            });
        });
        let weights = product::source(&weights);
        let product = Product::new(Operand::new(&*weights), w, self.compute());
        matmul(&Product { accumulate: true, ..product }, product::out(sums));
    }

    /// `scale * (sums / sum + (p_target - 1) dl_target w_target)`, in place of the sums.
    fn finish(&self, rows: &[Row], head: &dyn Source, sums: &mut Tensor) {
        let channels = sums.cols();
        sums.data_mut::<f32>().par_chunks_mut(channels).zip(rows).for_each(|(sums, row)| {
            // As the products see it.
            let mut w = vec![0.0f32; channels];
            if self.compute() == Compute::Bf16 {
                let mut rounded = vec![bf16::ZERO; channels];
                head.read_bf16(row.target, 0, &mut rounded);
                w.iter_mut().zip(rounded).for_each(|(w, v)| *w = v.to_f32());
            } else {
                head.read_f32(row.target, 0, &mut w);
            }
            let slope = self.head.shaping.slope(row.logit);
            let (inverse, surplus) = ((1.0 / row.sum) as f32, row.surplus() * slope);
            for (v, w) in sums.iter_mut().zip(&w) {
                *v = self.scale() * (*v * inverse + surplus * w);
            }
        });
    }
}
