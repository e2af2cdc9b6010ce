use super::Head;
use crate::product;
use halfbyte_autograd::Result;
use halfbyte_matmul::Compute;
use halfbyte_tensor::{DType, Float, Tensor, vectorised, with_float};
use rayon::prelude::*;

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
    /// What is held at once.
    pub(super) at_once: AtOnce,
}

pub(super) struct Found {
    /// The plain sum over the rows.
    pub(super) loss: f64,
    /// `(rows, channels)`; f32 for f16 activations, whose range is too narrow for a gradient before loss scaling.
    pub(super) dh: Option<Tensor>,
    /// f32 `(vocab, channels)`.
    pub(super) dw: Option<Tensor>,
}

/// How much of the logits is held at once: a function of the shape alone, so that sums are the same on every machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtOnce {
    /// Rows of whole logits.
    pub(super) whole_rows: usize,
    /// Rows and columns of a strip of logits.
    pub(super) strip: (usize, usize),
}

impl AtOnce {
    pub(super) fn new(vocab: usize) -> AtOnce {
        /// Small enough to matter to nobody, large enough that reading the head once a chunk is cheap beside the products.
        const WHOLE_BYTES: usize = 32 << 20;
        const MAX_WHOLE_ROWS: usize = 512;
        // Whole tiles and whole pieces of k in the products' kernels; both in the far cache.
        const STRIP: (usize, usize) = (1008, 1536);
        AtOnce { whole_rows: (WHOLE_BYTES / (4 * vocab.max(1))).clamp(1, MAX_WHOLE_ROWS), strip: STRIP }
    }
}

impl Job<'_> {
    pub(super) fn run(&self) -> Result<Found> {
        let dims = self.head.dims()?;
        if self.h.gpu().is_some() {
            return self.run_on_gpu(dims);
        }
        // A format that computes its own forward is asked for whole rows.
        let own_forward = self.head.override_forward(&gather(self.h, &self.rows[..1])).is_some();
        if self.want_dw || own_forward { self.run_rows(dims) } else { Ok(self.run_strips(dims)) }
    }

    pub(super) fn compute(&self) -> Compute {
        product::compute(self.h.dtype())
    }

    pub(super) fn kept_dtype(&self) -> DType {
        product::compute_dtype(self.h.dtype())
    }
}

/// `scale * t`, in place on a CPU.
pub(super) fn scaled(t: Tensor, scale: f32) -> Result<Tensor> {
    if scale == 1.0 {
        return Ok(t);
    }
    if t.gpu().is_some() {
        return Ok(crate::add::cuda::scaled(&t, scale)?);
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
    Ok(t)
}

pub(super) fn gather(h: &Tensor, rows: &[usize]) -> Tensor {
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

pub(super) fn scatter(chunk: &Tensor, rows: &[usize], out: &mut Tensor) {
    let channels = out.cols();
    with_float!(chunk.dtype(), T, {
        let (from, to) = (chunk.data::<T>(), out.data_mut::<T>());
        for (i, row) in rows.iter().enumerate() {
            to[row * channels..][..channels].copy_from_slice(&from[i * channels..][..channels]);
        }
    });
}
