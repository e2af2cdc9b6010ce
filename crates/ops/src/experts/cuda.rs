use super::Routes;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "experts", "kernel.cu", over Tensor;
    take as Take { x: *const T, order: *const u32, first: usize, y: *mut T, channels: i32, n: usize }
    add_rows as AddRows { x: *const T, order: *const u32, first: usize, sum: *mut f32, channels: i32, n: usize }
    weigh as Weigh { x: *const T, w: *const f32, y: *mut T, channels: i32, n: usize }
    dots as Dots { dy: *const T, x: *const T, dw: *mut f32, channels: i32 }
}

pub(super) fn take(gpu: &Arc<Gpu>, x: &Tensor, (routes, expert): (&Routes, usize), y: &mut Tensor) -> Result<()> {
    let (first, channels, n) = (routes.range(expert).start, x.cols(), y.len());
    let kernel = Take { x, order: routes.order_on(gpu)?, first, y, channels, n };
    // SAFETY: `y` has a row for each of the expert's tokens, whose rows `x` has.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::elements(n)) }
}

/// One expert after the other, in each of which a token occurs once.
pub(super) fn sum(gpu: &Arc<Gpu>, parts: &[Option<&Tensor>], routes: &Routes, y: &mut Tensor) -> Result<()> {
    let mut sum = Tensor::zeros_on(&y.device(), y.shape(), DType::F32);
    for (expert, x) in routes.busy().zip(parts) {
        let Some(x) = x else { continue };
        let (first, channels, n) = (routes.range(expert).start, x.cols(), x.len());
        let kernel = AddRows { x: *x, order: routes.order_on(gpu)?, first, sum: &mut sum, channels, n };
        // SAFETY: as above; no two rows of the expert go to one place.
        unsafe { kernel.launch(gpu, number(x.dtype()), Launch::elements(n)) }?;
    }
    *y = sum.into_dtype(y.dtype());
    Ok(())
}

pub(super) fn weigh(gpu: &Arc<Gpu>, [x, w]: [&Tensor; 2], y: &mut Tensor) -> Result<()> {
    let (channels, n) = (x.cols(), x.len());
    // SAFETY: a weight a row.
    unsafe { Weigh { x, w, y, channels, n }.launch(gpu, number(x.dtype()), Launch::elements(n)) }
}

pub(super) fn dots(gpu: &Arc<Gpu>, [dy, x]: [&Tensor; 2], dw: &mut Tensor) -> Result<()> {
    let (channels, rows) = (x.cols(), x.rows());
    // SAFETY: a block a row of both.
    unsafe { Dots { dy, x, dw, channels }.launch(gpu, number(x.dtype()), Launch::rows(rows, 256)) }
}
