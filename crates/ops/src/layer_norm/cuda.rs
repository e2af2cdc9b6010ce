use super::Saved;
use crate::rms_norm::cuda::threads;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "layer_norm", "kernel.cu", over Tensor;
    forward as Forward { x: *const T, w: *const f32, b: *const f32, y: *mut T, stats: *mut f32, c: i32, eps: f32 }
    backward as Backward { x: *const T, w: *const f32, stats: *const f32, dy: *const T, dx: *mut T, c: i32 }
    affine_gradients as AffineGradients {
        x: *const T, stats: *const f32, dy: *const T, dw: *mut f32, db: *mut f32, rows: i32, c: i32,
    }
}

pub(super) fn forward(gpu: &Arc<Gpu>, [x, w, b]: [&Tensor; 3], eps: f32, [y, stats]: &mut [Tensor; 2]) -> Result<()> {
    let (rows, c) = (x.rows(), x.cols());
    if rows == 0 {
        return Ok(());
    }
    let kernel = Forward { x, w, b, y, stats, c, eps };
    // SAFETY: a block a row of `c` channels, a weight and a bias a channel, two numbers a row.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::rows(rows, threads(c, number(x.dtype())))) }
}

/// The gradients of `x` and, if wanted, of weight and bias.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    saved: &Saved<'_>,
    dy: &Tensor,
    (dx, affine): (&mut Tensor, Option<&mut [Tensor; 2]>),
) -> Result<()> {
    let Saved { x, w, stats } = *saved;
    let (rows, c) = (x.rows(), x.cols());
    if rows > 0 {
        let kernel = Backward { x, w, stats, dy, dx, c };
        // SAFETY: as in the forward pass; `dy` has the shape of `x`.
        unsafe { kernel.launch(gpu, number(x.dtype()), Launch::rows(rows, threads(c, number(x.dtype())))) }?;
    }
    if let Some([dw, db]) = affine {
        let kernel = AffineGradients { x, stats, dy, dw, db, rows, c };
        // SAFETY: a thread a channel, each over all rows.
        unsafe { kernel.launch(gpu, number(x.dtype()), Launch::elements(c)) }?;
    }
    Ok(())
}
