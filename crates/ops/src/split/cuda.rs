use super::Columns;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "split", "kernel.cu", over Tensor;
    take as Take { x: *const T, y: *mut T, cols: i32, first: i32, width: i32, stride: i32, count: i32, n: usize }
    put as Put { dy: *const T, dx: *mut T, cols: i32, first: i32, width: i32, stride: i32, count: i32, n: usize }
}

pub(super) fn take(gpu: &Arc<Gpu>, x: &Tensor, piece: Columns, y: &mut Tensor) -> Result<()> {
    let (Columns { first, width, stride, count }, cols, n) = (piece, x.cols(), y.len());
    let kernel = Take { x, y, cols, first, width, stride, count, n };
    // SAFETY: the piece lies within the rows of `x`, and `y` has as many rows of its columns.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::packs(n, number(x.dtype()))) }
}

pub(super) fn put(gpu: &Arc<Gpu>, dy: &Tensor, piece: Columns, dx: &mut Tensor) -> Result<()> {
    let (Columns { first, width, stride, count }, cols, n) = (piece, dx.cols(), dy.len());
    let kernel = Put { dy, dx, cols, first, width, stride, count, n };
    // SAFETY: as above, the other way round.
    unsafe { kernel.launch(gpu, number(dy.dtype()), Launch::packs(n, number(dy.dtype()))) }
}
