//! The loss on a GPU: as many rows at a time as keep the logits below a limit.

use super::cpu::{Found, Job};
use super::{Head, Matrix, Shaping};
use crate::{
    frozen,
    gpu_product::{Operand, multiply, product},
    product::bias_gradient,
};
use halfbyte_autograd::{Result, Var};
use halfbyte_cuda::{Gpu, Launch, Number, T, kernels};
use halfbyte_tensor::{DType, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "cross_entropy", "kernel.cu", over Tensor;
    gather_rows as GatherRows { x: *const T, rows: *const u32, out: *mut T, cols: i32, first: i32, n: usize }
    scatter_rows as ScatterRows { x: *const T, rows: *const u32, out: *mut T, cols: i32, first: i32, n: usize }
    softmax_loss as SoftmaxLoss {
        logits: *const f32, bias: Option<*const f32>, targets: *const u32, losses: *mut f32, grad: Option<*mut T>, vocab: i32, first: i32, scale: f32, cap: f32,
    }
    shape_logits as ShapeLogits { z: *const f32, factor: f32, cap: f32, y: *mut f32, n: usize }
    mean_loss as MeanLoss { losses: *const f32, mean: *mut f32, n: i32, denominator: f32 }
}

/// Bytes of f32 logits that exist at a time.
const LOGITS_BYTES: usize = 64 << 20;

/// Rows of logits that exist at a time, a multiple of the tiles of a product where there are so many.
fn rows_at_once(vocab: usize) -> usize {
    let rows = LOGITS_BYTES / 4 / vocab;
    if rows > 128 { rows / 128 * 128 } else { rows }
}

/// Logits of products, `n` numbers in f32.
pub(super) fn shape(
    gpu: &Arc<Gpu>,
    z: &Tensor,
    Shaping { factor, cap }: Shaping,
    y: &mut Tensor,
) -> halfbyte_tensor::Result<()> {
    let n = z.len();
    let kernel = ShapeLogits { z, factor, cap: cap.unwrap_or(0.0), y, n };
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { kernel.launch(gpu, Number::F32, Launch::packs(n, Number::F32)) }
}

/// Threads of a row of logits: as many as packs of four, up to 512, which have registers on every device.
fn row_threads(vocab: usize) -> u32 {
    vocab.div_ceil(4).next_multiple_of(32).clamp(32, 512) as u32
}

impl Head<'_, '_> {
    /// The head's matrix in `dtype`, on the GPU.
    fn on_gpu(&self, dtype: DType) -> Result<Tensor> {
        match self.matrix {
            Matrix::Frozen(w) => frozen::decoded(w, dtype),
            Matrix::Trainable(w) => Ok(Var::value(w).to_dtype(dtype)),
        }
    }
}

impl Job<'_> {
    pub(super) fn run_on_gpu(&self, gpu: &Arc<Gpu>, (vocab, channels): (usize, usize)) -> Result<Found> {
        let (dtype, shaping) = (self.h.dtype(), self.head.shaping);
        // f16 is too narrow for a gradient before loss scaling: there the factor waits for the f32 result of the product.
        let kept = self.kept_dtype();
        let (early, late) = if kept == dtype { (self.scale(), 1.0) } else { (1.0, self.scale()) };
        let device = self.h.device();
        let mut dh = self.want_dh.then(|| Tensor::zeros_on(&device, &[self.h.rows(), channels], kept));
        let mut dw = self.want_dw.then(|| Tensor::zeros_on(&device, &[vocab, channels], DType::F32));
        let mut db = self.want_db.then(|| Tensor::zeros_on(&device, &[vocab], DType::F32));
        let bias = self.head.bias.map(|it| it.value().to_dtype(DType::F32));
        let (w, counted) = (self.head.on_gpu(dtype)?, self.targets.rows().len());
        let (places, targets) = self.targets.on(gpu)?;
        let mut losses = self.h.scratch_like(&[counted], DType::F32);
        let at_once = rows_at_once(vocab).clamp(1, counted);
        for first in (0..counted).step_by(at_once) {
            let n = at_once.min(counted - first);
            let mut h = self.h.scratch_like(&[n, channels], dtype);
            let elements = n * channels;
            let kernel = GatherRows { x: self.h, rows: places, out: &mut h, cols: channels, first, n: elements };
            // SAFETY: all rows lie in `h`; `n` places from `first` on are there.
            unsafe { kernel.launch(gpu, number(dtype), Launch::packs(elements, number(dtype))) }?;
            let logits = product(shaping.factor, Operand::new(&h), Operand::new(&w).t(), DType::F32)?;
            let wanted = self.want_dh || self.want_dw || self.want_db;
            let mut grad = wanted.then(|| h.scratch_like(&[n, vocab], dtype));
            let (losses, scale, cap) = (&mut losses, early, shaping.cap.unwrap_or(0.0));
            let bias = bias.as_ref();
            let kernel =
                SoftmaxLoss { logits: &logits, bias, targets, losses, grad: grad.as_mut(), vocab, first, scale, cap };
            // SAFETY: a block a row of logits, whose target the caller checked.
            unsafe { kernel.launch(gpu, number(dtype), Launch::rows(n, row_threads(vocab))) }?;
            drop(logits);
            let Some(grad) = grad else { continue };
            if let Some(dw) = &mut dw {
                multiply(late, Operand::new(&grad).t(), Operand::new(&h), 1.0, dw)?;
            }
            if let Some(sum) = db.take() {
                db = Some(crate::add::sum(&sum, &bias_gradient(&grad)?, late)?);
            }
            if let Some(dh) = &mut dh {
                let part = product(late, Operand::new(&grad), Operand::new(&w), kept)?;
                let kernel = ScatterRows { x: &part, rows: places, out: dh, cols: channels, first, n: elements };
                // SAFETY: all rows lie in `dh`.
                unsafe { kernel.launch(gpu, number(kept), Launch::packs(elements, number(kept))) }?;
            }
        }
        let mut loss = self.h.scratch_like(&[1], DType::F32);
        let kernel = MeanLoss { losses: &losses, mean: &mut loss, n: counted, denominator: self.denominator };
        // SAFETY: one block over all losses.
        unsafe { kernel.launch(gpu, Number::F32, Launch::rows(1, 256)) }?;
        Ok(Found { loss, dh, dw, db })
    }
}
