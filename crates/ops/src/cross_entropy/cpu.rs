use super::{Head, softmax};
use crate::product;
use halfbyte_autograd::Result;
use halfbyte_matmul::{Compute, Dense, Operand, Out, Product, matmul};
use halfbyte_tensor::{DType, Float, Tensor, load_f32, vectorised, with_float};
use rayon::prelude::*;

/// What the logits of a chunk may take. Small enough to matter to nobody, large enough that reading the head once a
/// chunk is cheap beside the products.
const LOGITS_BYTES: usize = 32 << 20;
const MAX_ROWS: usize = 512;

/// One evaluation of the loss, and of the gradients that are wanted.
pub(super) struct Job<'a> {
    /// `(rows, channels)`.
    pub(super) h: &'a Tensor,
    pub(super) head: &'a Head<'a, 'a>,
    /// The rows that count, ascending.
    pub(super) rows: &'a [usize],
    pub(super) targets: &'a [u32],
    /// The factor on the gradients.
    pub(super) scale: f32,
    pub(super) want_dh: bool,
    pub(super) want_dw: bool,
    /// Rows whose logits are held at once.
    pub(super) at_once: usize,
}

pub(super) struct Found {
    /// The plain sum over the rows.
    pub(super) loss: f64,
    /// `(rows, channels)`; f32 for f16 activations, whose range is too narrow for a gradient before loss scaling.
    pub(super) dh: Option<Tensor>,
    /// f32 `(vocab, channels)`.
    pub(super) dw: Option<Tensor>,
}

impl Job<'_> {
    pub(super) fn run(&self) -> Result<Found> {
        let (vocab, channels) = self.head.dims()?;
        let kept = product::compute_dtype(self.h.dtype());
        let mut found = Found {
            loss: 0.0,
            dh: self.want_dh.then(|| Tensor::zeros(&[self.h.rows(), channels], kept)),
            dw: self.want_dw.then(|| Tensor::zeros(&[vocab, channels], DType::F32)),
        };
        let at_once = self.at_once.min(self.rows.len());
        let mut logits = Tensor::scratch(&[at_once, vocab], DType::F32);
        for rows in self.rows.chunks(at_once) {
            let h = gather(self.h, rows);
            let logits = &mut logits.data_mut::<f32>()[..rows.len() * vocab];
            self.project(&h, logits)?;
            let targets: Vec<usize> = rows.iter().map(|i| self.targets[*i] as usize).collect();
            let gradient = self.want_dh || self.want_dw;
            found.loss += softmax::losses(logits, &targets, gradient).iter().sum::<f64>();
            if let Some(dh) = &mut found.dh {
                scatter(&self.backward_h(logits, rows.len(), kept), rows, dh);
            }
            if let Some(dw) = &mut found.dw {
                self.accumulate_dw(logits, &h, dw);
            }
        }
        Ok(found)
    }

    fn compute(&self) -> Compute {
        product::compute(self.h.dtype())
    }

    /// `logits = h Wᵀ`.
    fn project(&self, h: &Tensor, logits: &mut [f32]) -> Result<()> {
        if let Some(y) = self.head.override_forward(h) {
            let y = y?;
            with_float!(y.dtype(), T, load_f32(y.data::<T>(), logits));
            return Ok(());
        }
        let (hs, w) = (product::source(h), self.head.source());
        matmul(&Product::new(Operand::new(&*hs), Operand::new(&*w).t(), self.compute()), Out::F32(logits));
        Ok(())
    }

    /// `dh = scale * dlogits W`.
    fn backward_h(&self, dlogits: &[f32], rows: usize, dtype: DType) -> Tensor {
        let w = self.head.source();
        let dlogits = Dense::new(rows, w.rows(), dlogits);
        let mut dh = Tensor::scratch(&[rows, w.cols()], dtype);
        let product = Product::new(Operand::new(&dlogits), Operand::new(&*w), self.compute());
        matmul(&Product { alpha: self.scale, ..product }, product::out(&mut dh));
        dh
    }

    /// `dW += scale * dlogitsᵀ h`.
    fn accumulate_dw(&self, dlogits: &[f32], h: &Tensor, dw: &mut Tensor) {
        let dlogits = Dense::new(h.rows(), dw.rows(), dlogits);
        let hs = product::source(h);
        let product = Product::new(Operand::new(&dlogits).t(), Operand::new(&*hs), self.compute());
        matmul(&Product { alpha: self.scale, accumulate: true, ..product }, product::out(dw));
    }
}

/// `scale * t`, in place.
pub(super) fn scaled(t: Tensor, scale: f32) -> Tensor {
    if scale == 1.0 {
        return t;
    }
    let mut t = t.into_unique();
    with_float!(t.dtype(), T, {
        t.data_mut::<T>().par_chunks_mut(1 << 14).for_each(|chunk| {
            vectorised!({
                for v in chunk {
                    *v = T::from_f32(v.to_f32() * scale);
                }
            })
        });
    });
    t
}

/// How many rows of logits to hold at once; a function of the shape alone, so that sums are the same on every machine.
pub(super) fn chunk_rows(vocab: usize) -> usize {
    (LOGITS_BYTES / (4 * vocab.max(1))).clamp(1, MAX_ROWS)
}

fn gather(h: &Tensor, rows: &[usize]) -> Tensor {
    let channels = h.cols();
    let mut chunk = Tensor::scratch(&[rows.len(), channels], h.dtype());
    with_float!(h.dtype(), T, {
        let (from, to) = (h.data::<T>(), chunk.data_mut::<T>());
        for (i, row) in rows.iter().enumerate() {
            to[i * channels..][..channels].copy_from_slice(&from[row * channels..][..channels]);
        }
    });
    chunk
}

fn scatter(chunk: &Tensor, rows: &[usize], out: &mut Tensor) {
    let channels = out.cols();
    with_float!(chunk.dtype(), T, {
        let (from, to) = (chunk.data::<T>(), out.data_mut::<T>());
        for (i, row) in rows.iter().enumerate() {
            to[row * channels..][..channels].copy_from_slice(&from[i * channels..][..channels]);
        }
    });
}
