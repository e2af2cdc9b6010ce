use super::KvPages;
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "kv_pages", "pages.cuh" "kernel.cu", over Tensor;
    append as Append { k: *const T, v: *const T, segments: *const u32, keys: usize, channels: i32 }
}

const THREADS: u32 = 128;

pub(super) fn append(
    gpu: &Arc<Gpu>,
    (pages, layer): (&mut KvPages, usize),
    [k, v]: [&Tensor; 2],
    layout: &Layout,
) -> Result<()> {
    let packs = k.cols().div_ceil(16 / k.dtype().size());
    let grid = (packs.div_ceil(THREADS as usize) as u32, layout.longest() as u32, layout.sequences() as u32);
    let segments = layout.segments_and_pages_on(gpu, pages)?;
    gpu.next_moves(2 * (k.bytes() + v.bytes()) + segments.bytes());
    let kernel = Append { k, v, segments, keys: pages.offset(layer), channels: k.cols() };
    let launch = Launch { grid, block: (THREADS, 1, 1), shared: 0 };
    // SAFETY: blocks for each new row of a sequence, whose pages are there: the caller checked rows and pages against the layout. Nobody
    // else has the pages.
    unsafe { kernel.launch(gpu, number(k.dtype()), launch) }
}
