use super::Move;
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda};
use std::sync::Arc;

const SOURCE: Source = Source { name: "kv_rows", text: include_str!("kernel.cu") };
const THREADS: u32 = 128;

pub(super) fn append(gpu: &Arc<Gpu>, into: [&mut Tensor; 2], rows: [&Tensor; 2], layout: &Layout) -> Result<()> {
    let ([keys, values], [k, v]) = (into, rows);
    let grid = (layout.longest() as u32, layout.sequences() as u32, 1);
    let call = cuda::Call::new(gpu, &SOURCE, k.dtype()).read(k).read(v).read(layout.segments_on(gpu)?);
    let launch = Launch { grid, block: (THREADS, 1, 1), shared: 0 };
    // SAFETY: a block a new row of a sequence; the caller checked rows and buffers against the layout.
    unsafe { call.write(keys).write(values).int(k.cols()).run("append", launch) }
}

pub(super) fn move_rows(into: &mut Tensor, from: &Tensor, moves: &[Move]) -> Result<()> {
    moves
        .iter()
        .filter(|it| !it.from.is_empty())
        .try_for_each(|it| cuda::copy_rows(into, it.to, from, it.from.start, it.from.len()))
}
