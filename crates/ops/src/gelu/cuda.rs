use super::Gelu;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "gelu", "kernel.cu", over Tensor;
    forward as Forward { x: *const T, exact: i32, y: *mut T, n: usize }
    backward as Backward { dy: *const T, x: *const T, exact: i32, dx: *mut T, n: usize }
}

pub(super) fn forward(gpu: &Arc<Gpu>, x: &Tensor, kind: Gelu, y: &mut Tensor) -> Result<()> {
    let (n, exact) = (x.len(), usize::from(kind == Gelu::Exact));
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { Forward { x, exact, y, n }.launch(gpu, number(x.dtype()), Launch::packs(n, number(x.dtype()))) }
}

pub(super) fn backward(gpu: &Arc<Gpu>, [dy, x]: [&Tensor; 2], kind: Gelu, dx: &mut Tensor) -> Result<()> {
    let (n, exact) = (x.len(), usize::from(kind == Gelu::Exact));
    // SAFETY: all three have as many elements as the kernel is told.
    unsafe { Backward { dy, x, exact, dx, n }.launch(gpu, number(x.dtype()), Launch::packs(n, number(x.dtype()))) }
}
