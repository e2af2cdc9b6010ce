use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "gelu_new", "kernel.cu", over Tensor;
    forward as Forward { x: *const T, y: *mut T, n: usize }
    backward as Backward { dy: *const T, x: *const T, dx: *mut T, n: usize }
}

pub(super) fn forward(gpu: &Arc<Gpu>, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let n = x.len();
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { Forward { x, y, n }.launch(gpu, number(x.dtype()), Launch::packs(n, number(x.dtype()))) }
}

pub(super) fn backward(gpu: &Arc<Gpu>, [dy, x]: [&Tensor; 2], dx: &mut Tensor) -> Result<()> {
    let n = x.len();
    // SAFETY: all three have as many elements as the kernel is told.
    unsafe { Backward { dy, x, dx, n }.launch(gpu, number(x.dtype()), Launch::packs(n, number(x.dtype()))) }
}
