use super::Move;
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{
    Result, Tensor,
    cuda::{self, number},
};
use std::sync::Arc;

kernels! {
    const SOURCE = "kv_rows", "kernel.cu", over Tensor;
    append as Append { k: *const T, v: *const T, segments: *const u32, keys: *mut T, values: *mut T, channels: i32 }
}

const THREADS: u32 = 128;

pub(super) fn append(gpu: &Arc<Gpu>, into: [&mut Tensor; 2], rows: [&Tensor; 2], layout: &Layout) -> Result<()> {
    let ([keys, values], [k, v]) = (into, rows);
    let packs = k.cols().div_ceil(16 / k.dtype().size());
    let grid = (packs.div_ceil(THREADS as usize) as u32, layout.longest() as u32, layout.sequences() as u32);
    let kernel = Append { k, v, segments: layout.segments_on(gpu)?, keys, values, channels: k.cols() };
    let launch = Launch { grid, block: (THREADS, 1, 1), shared: 0 };
    // SAFETY: blocks for each new row of a sequence; the caller checked rows and buffers against the layout.
    unsafe { kernel.launch(gpu, number(k.dtype()), launch) }
}

pub(super) fn move_rows(into: &mut Tensor, from: &Tensor, moves: &[Move]) -> Result<()> {
    moves
        .iter()
        .filter(|it| !it.from.is_empty())
        .try_for_each(|it| cuda::copy_rows(into, it.to, from, it.from.start, it.from.len()))
}
