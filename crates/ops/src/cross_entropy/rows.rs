//! The loss and its gradients from whole rows of logits, a chunk of rows at a time: for heads that train, whose gradient
//! needs the finished softmax, and for formats that compute whole rows themselves.

use super::cpu::{Job, Sums, gather, scatter};
use super::softmax;
use crate::product;
use halfbyte_autograd::Result;
use halfbyte_matmul::{Dense, Operand, Out, Product, matmul};
use halfbyte_tensor::{DType, Tensor, load_f32, vectorised, with_float};
use rayon::prelude::*;

/// Logits that a thread takes at once.
pub(super) const AT_ONCE: usize = 1 << 12;

impl Job<'_> {
    pub(super) fn run_rows(&self, (vocab, channels): (usize, usize)) -> Result<Sums> {
        let kept = self.kept_dtype();
        let mut found = Sums {
            loss: 0.0,
            dh: self.want_dh.then(|| Tensor::zeros(&[self.h.rows(), channels], kept)),
            dw: self.want_dw.then(|| Tensor::zeros(&[vocab, channels], DType::F32)),
            db: self.want_db.then(|| Tensor::zeros(&[vocab], DType::F32)),
        };
        let bias = self.head.bias_values();
        let at_once = self.at_once.whole_rows.min(self.targets.rows().len());
        let mut logits = Tensor::scratch(&[at_once, vocab], DType::F32);
        for (rows, ids) in self.targets.rows().chunks(at_once).zip(self.targets.ids().chunks(at_once)) {
            let h = gather(self.h, rows);
            let logits = &mut logits.data_mut::<f32>()[..rows.len() * vocab];
            self.project(&h, bias.as_deref(), logits)?;
            let targets: Vec<usize> = ids.iter().map(|it| *it as usize).collect();
            let gradient = self.want_dh || self.want_dw || self.want_db;
            found.loss += softmax::losses(logits, &targets, gradient.then_some(self.head.shaping)).iter().sum::<f64>();
            if let Some(dh) = &mut found.dh {
                scatter(&self.backward_h(logits, rows.len(), kept), rows, dh);
            }
            if let Some(dw) = &mut found.dw {
                self.accumulate_dw(logits, &h, dw);
            }
            if let Some(db) = &mut found.db {
                self.accumulate_db(logits, db.data_mut());
            }
        }
        Ok(found)
    }

    /// The logits of `h Wᵀ` and the bias.
    fn project(&self, h: &Tensor, bias: Option<&[f32]>, logits: &mut [f32]) -> Result<()> {
        let shaping = self.head.shaping;
        if let Some(y) = self.head.override_forward(h) {
            let y = y?;
            with_float!(y.dtype(), T, load_f32(y.data::<T>(), logits));
            logits.iter_mut().for_each(|v| *v *= shaping.factor);
            for row in logits.chunks_mut(self.head.dims()?.0) {
                row.iter_mut().zip(bias.unwrap_or_default()).for_each(|(v, bias)| *v += bias);
            }
            self.bend(logits);
            return Ok(());
        }
        let (hs, w) = (product::source(h), self.head.source());
        let product = Product::new(Operand::new(&*hs), Operand::new(&*w).t(), self.compute());
        let accumulate = self.begin(bias, logits);
        matmul(&Product { alpha: shaping.factor, accumulate, ..product }, Out::F32(logits));
        self.bend(logits);
        Ok(())
    }

    fn bend(&self, logits: &mut [f32]) {
        if self.head.shaping.cap.is_some() {
            logits.par_chunks_mut(AT_ONCE).for_each(|it| vectorised!({ self.head.shaping.bend(it) }));
        }
    }

    /// `dh = scale * dlogits W`.
    fn backward_h(&self, dlogits: &[f32], rows: usize, dtype: DType) -> Tensor {
        let w = self.head.source();
        let dlogits = Dense::new(rows, w.rows(), dlogits);
        let mut dh = Tensor::scratch(&[rows, w.cols()], dtype);
        let product = Product::new(Operand::new(&dlogits), Operand::new(&*w), self.compute());
        matmul(&Product { alpha: self.scale(), ..product }, product::out(&mut dh));
        dh
    }

    /// `db += scale * dlogitsᵀ 1`.
    fn accumulate_db(&self, dlogits: &[f32], db: &mut [f32]) {
        let vocab = db.len();
        db.par_chunks_mut(AT_ONCE).enumerate().for_each(|(strip, db)| {
            for row in dlogits.chunks(vocab) {
                let row = &row[strip * AT_ONCE..][..db.len()];
                db.iter_mut().zip(row).for_each(|(sum, v)| *sum += self.scale() * v);
            }
        });
    }

    /// `dW += scale * dlogitsᵀ h`.
    fn accumulate_dw(&self, dlogits: &[f32], h: &Tensor, dw: &mut Tensor) {
        let dlogits = Dense::new(h.rows(), dw.rows(), dlogits);
        let hs = product::source(h);
        let product = Product::new(Operand::new(&dlogits).t(), Operand::new(&*hs), self.compute());
        matmul(&Product { alpha: self.scale(), accumulate: true, ..product }, product::out(dw));
    }
}
