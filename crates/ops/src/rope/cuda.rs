use super::{Pairs, RopeTable};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, InRows, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "rope", "kernel.cu", over Tensor;
    rotate as Rotate {
        x: *const T, table: *const f32, positions: *const u32, y: InRows<*mut T>, stride: i32, heads: i32, dim: i32, half: i32,
        length: i32, direction: f32, pairs: usize,
    }
    rotate_neighbours as RotateNeighbours {
        x: *const T, table: *const f32, positions: *const u32, y: *mut T, heads: i32, dim: i32, half: i32, length: i32,
        direction: f32, n: usize,
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
    let stride = y.stride();
    let kernel = Rotate { x, table: &on_gpu, positions, y, stride, heads, dim, half, length, direction, pairs };
    // SAFETY: rows of `heads` heads of `dim` channels, `2 half` or more, a position a row, and all positions lie in the table.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::packs(pairs.div_ceil(TOGETHER), number(x.dtype()))) }
}
