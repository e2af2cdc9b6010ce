use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "add", "kernel.cu", over Tensor;
    add_scaled as AddScaled { a: *const T, b: *const T, scale: f32, y: *mut T, n: usize }
    scale as Scale { x: *const T, factor: f32, y: *mut T, n: usize }
}

pub(super) fn add_scaled(gpu: &Arc<Gpu>, [a, b]: [&Tensor; 2], scale: f32, y: &mut Tensor) -> Result<()> {
    let n = a.len();
    // SAFETY: all three have as many elements as the kernel is told.
    unsafe { AddScaled { a, b, scale, y, n }.launch(gpu, number(a.dtype()), Launch::packs(n, number(a.dtype()))) }
}

pub(super) fn scaled(gpu: &Arc<Gpu>, x: &Tensor, factor: f32, y: &mut Tensor) -> Result<()> {
    let n = x.len();
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { Scale { x, factor, y, n }.launch(gpu, number(x.dtype()), Launch::packs(n, number(x.dtype()))) }
}
