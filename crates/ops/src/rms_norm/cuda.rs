use super::{RmsNorm, Saved};
use halfbyte_cuda::{Any, Gpu, InRows, Kind, Launch, Number, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "rms_norm", "kernel.cu", over Tensor;
    forward as Forward {
        x: *const T, w: *const Any, w_kind: Kind, y: InRows<*mut T>, rstd: *mut f32, c: i32, stride: i32, eps: f32, offset: f32,
        rounds_last: i32,
    }
    backward as Backward {
        x: *const T, w: *const Any, w_kind: Kind, rstd: *const f32, dy: *const T, there: Option<InRows<*const T>>, there_stride: i32,
        dx: InRows<*mut T>, stride: i32, c: i32, offset: f32,
    }
    weight_gradient as WeightGradient {
        x: *const T, rstd: *const f32, dy: *const T, dw: *mut f32, rows: i32, c: i32, rounds_last: i32,
    }
}

/// Threads of a row of `c` channels: so many that each keeps its share of the row in registers, up to 512, which have
/// registers on every device.
pub(crate) fn threads(c: usize, element: Number) -> u32 {
    const KEPT: usize = 2;
    c.div_ceil(KEPT * 16 / element.size()).next_multiple_of(32).clamp(32, 512) as u32
}

pub(super) fn forward(
    gpu: &Arc<Gpu>,
    (x, w, norm): (&Tensor, &Tensor, RmsNorm),
    [y, rstd]: &mut [Tensor; 2],
) -> Result<()> {
    let RmsNorm { eps, offset, rounds_last } = norm;
    let rounds_last = usize::from(rounds_last);
    let (rows, c) = (x.len() / w.len(), w.len());
    if rows == 0 {
        return Ok(());
    }
    let (w_kind, stride) = (number(w.dtype()), c + y.room());
    let kernel = Forward { x, w, w_kind, y, rstd, c, stride, eps, offset, rounds_last };
    // SAFETY: a block a row of `c` channels, a weight a channel, a number a row.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::rows(rows, threads(c, number(x.dtype())))) }
}

/// The gradients of `x`, added to what is `there`, and, if wanted, of `w`.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    saved: &Saved<'_>,
    (dy, there): (&Tensor, Option<&Tensor>),
    (dx, dw): (&mut Tensor, Option<&mut Tensor>),
) -> Result<()> {
    let Saved { x, w, rstd, norm: RmsNorm { offset, rounds_last, .. }, .. } = *saved;
    let rounds_last = usize::from(rounds_last);
    let (rows, c) = (x.len() / w.len(), w.len());
    if rows > 0 {
        let w_kind = number(w.dtype());
        // Norms of parts of rows have nothing beside these.
        let apart = |it: &Tensor| c + it.stride() - it.cols();
        let (there_stride, stride) = (there.map_or(c, apart), apart(dx));
        let kernel = Backward { x, w, w_kind, rstd, dy, there, there_stride, dx, stride, c, offset };
        // SAFETY: as in the forward pass; `dy` and what is there have the shape of `x`.
        unsafe { kernel.launch(gpu, number(x.dtype()), Launch::rows(rows, threads(c, number(x.dtype())))) }?;
    }
    if let Some(dw) = dw {
        let kernel = WeightGradient { x, rstd, dy, dw, rows, c, rounds_last };
        // SAFETY: a thread a channel, each over all rows.
        unsafe { kernel.launch(gpu, number(x.dtype()), Launch::elements(c)) }?;
    }
    Ok(())
}
