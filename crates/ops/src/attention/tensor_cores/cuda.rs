//! Launches of the kernels for tensor cores.

use super::super::{AttentionShape, Saved};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "tensor_cores", "kernel.cu", over Tensor;
    forward as Forward {
        q: *const T, k: *const T, v: *const T, segments: *const u32, y: *mut T, lse: *mut f32, heads: i32, kv_heads: i32, dim: i32,
        window: i32, scale: f32,
    }
    along as Along { dy: *const T, y: *const T, segments: *const u32, d: *mut f32, heads: i32, dim: i32 }
    query_gradient as QueryGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32, dq: *mut T,
        heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32,
    }
    key_value_gradient as KeyValueGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dk: Option<*mut T>, dv: Option<*mut T>, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, turns: i32,
    }
}

/// Rows that a block takes, and rows of a tile of queries: as in the kernels.
const ROWS: usize = 128;
const QUERIES: usize = 64;
/// Threads of a block whose rows are keys.
const KEY_THREADS: u32 = 256;

/// Blocks whose rows are queries, as the kernels of an architecture have them: threads, and keys of a tile in the forward pass and for
/// the gradient of queries.
struct QueryBlocks {
    threads: u32,
    keys: usize,
    few_keys: usize,
}

impl QueryBlocks {
    fn of(gpu: &Gpu) -> QueryBlocks {
        match gpu.info().compute_capability.major {
            9 => QueryBlocks { threads: 256, keys: 128, few_keys: 64 },
            _ => QueryBlocks { threads: 128, keys: 64, few_keys: 32 },
        }
    }
}
/// Shorter rows than this would leave most of a block idle.
const SHORTEST: usize = 32;

/// Whether tensor cores can do it: 16-bit numbers, whole pieces of channels, and a scale that keeps the order of the scores.
pub(in crate::attention) fn fit(shape: &AttentionShape, layout: &Layout, dtype: DType) -> bool {
    let head = shape.head_dim.is_multiple_of(16) && shape.head_dim <= 128;
    dtype != DType::F32 && head && shape.scale > 0.0 && layout.longest() >= SHORTEST
}

/// Channels that a head has in shared memory.
fn padded(shape: &AttentionShape) -> usize {
    if shape.head_dim <= 64 { 64 } else { 128 }
}

/// A block for so many heads and every `ROWS` rows of a sequence, with so many bytes of shared memory.
fn launch(layout: &Layout, heads: usize, threads: u32, shared: usize) -> Launch {
    let grid = (heads as u32, layout.longest().div_ceil(ROWS) as u32, layout.sequences() as u32);
    Launch { grid, block: (threads, 1, 1), shared: shared as u32 }
}

/// As [`super::super::cuda::forward`].
pub(in crate::attention) fn forward(
    gpu: &Arc<Gpu>,
    [q, k, v]: [&Tensor; 3],
    (shape, layout): (&AttentionShape, &Layout),
    (y, lse): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let blocks = QueryBlocks::of(gpu);
    let shared = q.dtype().size() * padded(shape) * (ROWS + 4 * blocks.keys);
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window } = *shape;
    let (segments, window) = (layout.segments_on(gpu)?, window.unwrap_or(0));
    let kernel = Forward { q, k, v, segments, y, lse, heads, kv_heads, dim, window, scale };
    // SAFETY: the caller checked the operands against the layout.
    unsafe { kernel.launch(gpu, number(q.dtype()), launch(layout, heads, blocks.threads, shared)) }
}

/// As [`super::super::cuda::backward`].
pub(in crate::attention) fn backward(
    gpu: &Arc<Gpu>,
    saved: &Saved<'_>,
    (shape, layout): (&AttentionShape, &Layout),
    [dq, dk, dv]: &mut [Option<Tensor>; 3],
) -> Result<()> {
    let ([q, k, v], segments, element) = (saved.inputs, layout.segments_on(gpu)?, number(saved.dy.dtype()));
    let (row, mut d) = (q.dtype().size() * padded(shape), q.scratch_like(saved.lse.shape(), DType::F32));
    let (AttentionShape { heads, kv_heads, head_dim: dim, scale, window }, blocks) = (*shape, QueryBlocks::of(gpu));
    let (dy, lse, window) = (saved.dy, saved.lse, window.unwrap_or(0));
    let kernel = Along { dy, y: saved.y, segments, d: &mut d, heads, dim };
    // SAFETY: a block for every `ROWS` rows and head of every sequence.
    unsafe { kernel.launch(gpu, element, launch(layout, heads, blocks.threads, 0)) }?;
    let d = &d;
    if let Some(dq) = dq {
        let shared = row * (2 * ROWS + 4 * blocks.few_keys);
        let kernel = QueryGradient { q, k, v, dy, lse, d, segments, dq, heads, kv_heads, dim, window, scale };
        // SAFETY: gradients have the shapes of what they belong to.
        unsafe { kernel.launch(gpu, element, launch(layout, heads, blocks.threads, shared)) }?;
    }
    if dk.is_some() || dv.is_some() {
        let numbers = 2 * QUERIES * DType::F32.size();
        let shared = |turns: usize| row * 2 * ROWS + turns * (row * 2 * QUERIES + numbers);
        let turns = if shared(2) <= gpu.shared_memory_limit() as usize { 2 } else { 1 };
        let (dk, dv) = (dk.as_mut(), dv.as_mut());
        let kernel = KeyValueGradient { q, k, v, dy, lse, d, segments, dk, dv, heads, kv_heads, dim, window, scale, turns };
        // SAFETY: as above; the kernel leaves out what leads nowhere.
        unsafe { kernel.launch(gpu, element, launch(layout, kv_heads, KEY_THREADS, shared(turns))) }?;
    }
    Ok(())
}
