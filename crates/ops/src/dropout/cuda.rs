use super::Dropout;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "dropout", "kernel.cu", over Tensor;
    dropout as Apply { x: *const T, y: *mut T, p: f32, seed: u64, site: u64, n: usize }
}

pub(super) fn apply(gpu: &Arc<Gpu>, x: &Tensor, d: Dropout, y: &mut Tensor) -> Result<()> {
    let n = x.len();
    let kernel = Apply { x, y, p: d.p, seed: d.seed, site: d.site, n };
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::elements(n)) }
}
