use super::Head;
use crate::{ids::Targets, place::Cost, product};
use halfbyte_autograd::Result;
use halfbyte_matmul::{Compute, PackedLeft};
use halfbyte_tensor::{DType, Float, Ledger, Place, Tensor, vectorised, with_float};
use rayon::prelude::*;

/// One evaluation of the loss, and of the gradients that are wanted.
pub(super) struct Job<'a> {
    /// `(rows, channels)`.
    pub(super) h: &'a Tensor,
    pub(super) head: &'a Head<'a, 'a>,
    /// One for each row of `h`.
    pub(super) targets: &'a Targets,
    /// What the sum of the losses is divided by, and so the gradients.
    pub(super) denominator: f32,
    pub(super) want_dh: bool,
    pub(super) want_dw: bool,
    pub(super) want_db: bool,
    /// What is held at once.
    pub(super) at_once: AtOnce,
}

pub(super) struct Found {
    /// f32 `[1]`, where `h` is.
    pub(super) loss: Tensor,
    /// `(rows, channels)`; f32 for f16 activations, whose range is too narrow for a gradient before loss scaling.
    pub(super) dh: Option<Tensor>,
    /// f32 `(vocab, channels)`.
    pub(super) dw: Option<Tensor>,
    /// f32 `(vocab)`.
    pub(super) db: Option<Tensor>,
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

/// What the host's loops find: the loss is the plain sum over the rows.
pub(super) struct Sums {
    pub(super) loss: f64,
    pub(super) dh: Option<Tensor>,
    pub(super) dw: Option<Tensor>,
    pub(super) db: Option<Tensor>,
}

impl Job<'_> {
    pub(super) fn run(&self) -> Result<Found> {
        let dims = self.head.dims()?;
        let counted = self.targets.rows();
        match self.h.place() {
            Place::Gpu(gpu) => self.run_on_gpu(gpu, dims),
            Place::Host => {
                // A format that computes its own forward is asked for whole rows.
                let own_forward = self.head.override_forward(&gather(self.h, &counted[..1])).is_some();
                let Sums { loss, dh, dw, db } = if self.want_dw || self.want_db || own_forward {
                    self.run_rows(dims)?
                } else {
                    self.run_strips(dims)
                };
                let loss = Tensor::scalar((loss / f64::from(self.denominator)) as f32);
                Ok(Found { loss, dh, dw, db })
            }
            Place::Dry(ledger) => Ok(self.run_dry(ledger, dims)),
        }
    }

    /// The tensors of `run_rows` or `run_strips`, and their products counted.
    fn run_dry(&self, ledger: &Ledger, (vocab, channels): (usize, usize)) -> Found {
        let (rows, kept) = (self.targets.rows().len(), self.kept_dtype());
        let dh = self.want_dh.then(|| self.h.scratch_like(&[self.h.rows(), channels], kept));
        let dw = self.want_dw.then(|| self.h.scratch_like(&[vocab, channels], DType::F32));
        let db = self.want_db.then(|| self.h.scratch_like(&[vocab], DType::F32));
        let passing = if self.want_dw || self.want_db {
            let at_once = self.at_once.whole_rows.min(rows);
            at_once * (4 * vocab + 2 * channels * kept.size())
        } else {
            let (at_once, width) = (self.at_once.strip.0.min(rows), self.at_once.strip.1.min(vocab));
            let weights = if self.want_dh { at_once * (width * kept.size() + 4 * channels) } else { 0 };
            let panels = PackedLeft::bytes((at_once, channels), self.compute());
            at_once * (4 * width + channels * kept.size()) + weights + panels
        };
        let products = 1 + usize::from(self.want_dh) + usize::from(self.want_dw);
        let cost = Cost::of(0, &[self.h]).flops(2 * products * rows * vocab * channels);
        cost.passing(passing).count(ledger);
        Found { loss: self.h.scratch_like(&[1], DType::F32), dh, dw, db }
    }

    /// The factor on the gradients of products.
    pub(super) fn scale(&self) -> f32 {
        self.head.shaping.factor / self.denominator
    }

    /// Begins logits with the bias, and says whether there is one: the products are added to it.
    pub(super) fn begin(&self, bias: Option<&[f32]>, logits: &mut [f32]) -> bool {
        if let Some(bias) = bias {
            logits.par_chunks_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
        }
        bias.is_some()
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
    match t.place() {
        Place::Host => {}
        Place::Gpu(_) => return crate::add::scaled(&t, scale),
        Place::Dry(_) => return Ok(t.into_unique()),
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

pub(super) fn gather(h: &Tensor, rows: &[u32]) -> Tensor {
    let channels = h.cols();
    let mut chunk = Tensor::scratch(&[rows.len(), channels], h.dtype());
    with_float!(h.dtype(), T, {
        let (from, to) = (h.data::<T>(), chunk.data_mut::<T>());
        for (i, row) in rows.iter().enumerate() {
            to[i * channels..][..channels].copy_from_slice(&from[*row as usize * channels..][..channels]);
        }
    });
    chunk
}

pub(super) fn scatter(chunk: &Tensor, rows: &[u32], out: &mut Tensor) {
    let channels = out.cols();
    with_float!(chunk.dtype(), T, {
        let (from, to) = (chunk.data::<T>(), out.data_mut::<T>());
        for (i, row) in rows.iter().enumerate() {
            to[*row as usize * channels..][..channels].copy_from_slice(&from[i * channels..][..channels]);
        }
    });
}
