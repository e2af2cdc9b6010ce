use super::{Pairs, RopeTable};
use crate::{kv_pages::KvPages, layout::Layout};
use halfbyte_cuda::{Gpu, InRows, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "rope", "../kv_pages/pages.cuh" "kernel.cu", over Tensor;
    rotate as Rotate {
        x: InRows<*const T>, x_stride: i32, table: *const f32, positions: *const u32, y: InRows<*mut T>, stride: i32, heads: i32, dim: i32,
        half: i32, length: i32, direction: f32, pairs: usize,
    }
    rotate_in_place as RotateInPlace {
        x: InRows<*mut T>, stride: i32, table: *const f32, positions: *const u32, heads: i32, dim: i32, half: i32, length: i32,
        direction: f32, pairs: usize,
    }
    rotate_neighbours as RotateNeighbours {
        x: *const T, table: *const f32, positions: *const u32, y: *mut T, heads: i32, dim: i32, half: i32, length: i32,
        direction: f32, n: usize,
    }
    rotate_into as RotateInto {
        q: *const T, k: *const T, v: *const T, table: *const f32, positions: *const u32, segments: *const u32, keys: usize, y: *mut T,
        heads: i32, kv_heads: i32, dim: i32, half: i32, length: i32,
    }
}

/// Heads that a thread turns, as in the kernel.
const TOGETHER: usize = 4;

pub(super) fn rotate(
    gpu: &Arc<Gpu>,
    (x, y, dim): (&Tensor, &mut Tensor, usize),
    table: &RopeTable,
    layout: &Layout,
    direction: f32,
) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let (on_gpu, positions) = (table.on(gpu)?, layout.positions_on(gpu)?);
    let (heads, pairs) = (x.cols() / dim, x.len() / dim * table.half);
    let (half, length) = (table.half, table.length);
    if table.pairs == Pairs::Neighbours {
        let n = x.len() / 2;
        let kernel = RotateNeighbours { x, table: &on_gpu, positions, y, heads, dim, half, length, direction, n };
        // SAFETY: as below, and heads have an even number of channels.
        return unsafe { kernel.launch(gpu, number(x.dtype()), Launch::elements(n)) };
    }
    let (x_stride, stride) = (x.stride(), y.stride());
    let kernel =
        Rotate { x, x_stride, table: &on_gpu, positions, y, stride, heads, dim, half, length, direction, pairs };
    // SAFETY: rows of `heads` heads of `dim` channels, `2 half` or more, a position a row, and all positions lie in the table.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::packs(pairs.div_ceil(TOGETHER), number(x.dtype()))) }
}

/// What nobody else holds, over itself; its pairs are halves.
pub(super) fn rotate_in_place(
    gpu: &Arc<Gpu>,
    (x, dim): (&mut Tensor, usize),
    table: &RopeTable,
    layout: &Layout,
    direction: f32,
) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let (on_gpu, positions, element) = (table.on(gpu)?, layout.positions_on(gpu)?, number(x.dtype()));
    let (heads, pairs, stride) = (x.cols() / dim, x.len() / dim * table.half, x.stride());
    let (half, length) = (table.half, table.length);
    gpu.next_moves(2 * x.bytes() + on_gpu.bytes() + positions.bytes());
    let kernel = RotateInPlace { x, stride, table: &on_gpu, positions, heads, dim, half, length, direction, pairs };
    // SAFETY: as in `rotate`; a thread reads what it writes before it does, and nothing that another one writes.
    unsafe { kernel.launch(gpu, element, Launch::packs(pairs.div_ceil(TOGETHER), element)) }
}

/// Queries to `y`, keys and values to a layer's pages of a cache, whose layout is the second.
pub(super) fn rotate_into(
    gpu: &Arc<Gpu>,
    [q, k, v]: [&Tensor; 3],
    (y, pages, layer): (&mut Tensor, &mut KvPages, usize),
    (table, dim): (&RopeTable, usize),
    (layout, cache): (&Layout, &Layout),
) -> Result<()> {
    const THREADS: usize = 256;
    let (on_gpu, positions) = (table.on(gpu)?, layout.positions_on(gpu)?);
    let segments = cache.segments_and_pages_on(gpu, pages)?;
    let (heads, kv_heads, half, length) = (q.cols() / dim, k.cols() / dim, table.half, table.length);
    let pack = 16 / q.dtype().size();
    let items =
        (heads + kv_heads) * (half.div_ceil(pack) + (dim - 2 * half).div_ceil(pack)) + kv_heads * dim.div_ceil(pack);
    let grid = (items.div_ceil(THREADS) as u32, cache.longest() as u32, cache.sequences() as u32);
    let launch = Launch { grid, block: (THREADS as u32, 1, 1), shared: 0 };
    gpu.next_moves(2 * (q.bytes() + k.bytes() + v.bytes()) + on_gpu.bytes() + positions.bytes() + segments.bytes());
    let kernel = RotateInto {
        q,
        k,
        v,
        table: &on_gpu,
        positions,
        segments,
        keys: pages.offset(layer),
        y,
        heads,
        kv_heads,
        dim,
        half,
        length,
    };
    // SAFETY: blocks for each new row of a sequence, whose pages are there and nobody else's; the caller checked rows and pages against both
    // layouts, and the positions lie in the table.
    unsafe { kernel.launch(gpu, number(q.dtype()), launch) }
}
