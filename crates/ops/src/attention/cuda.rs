use super::{
    AttentionShape, Saved,
    tensor_cores::{
        cuda::{self as tensor_cores, Blocks},
        wide::cuda::{self as wide, Tiles},
    },
};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{DType, Error, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "attention", "shape.cuh" "forward.cuh" "kernel.cu", over Tensor;
    forward as Forward {
        q: *const T, k: *const T, v: *const T, segments: *const u32, y: *mut T, lse: *mut f32, heads: i32, kv_heads: i32, dim: i32,
        window: i32, scale: f32, cap: f32, sinks: Option<*const f32>,
    }
    products as Products { dy: *const T, y: *const T, segments: *const u32, d: *mut f32, heads: i32, dim: i32 }
    query_gradient as QueryGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32, dq: *mut T,
        heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
    }
    key_value_gradient as KeyValueGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dk: Option<*mut T>, dv: Option<*mut T>, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
    }
}

/// Rows that a block takes, rows of a tile, threads of a block: as in the kernels.
const ROWS: usize = 16;
const TILE: usize = 32;
const THREADS: u32 = 128;
/// The channels that a lane sums are in registers, eight at most.
const MAX_HEAD_DIM: usize = 256;

/// How a kernel is started that takes so many heads and keeps two tiles and so many tensors of its block's rows.
pub(super) fn launch(
    (shape, layout): (&AttentionShape, &Layout),
    (heads, rows_kept): (usize, usize),
) -> Result<Launch> {
    if shape.head_dim > MAX_HEAD_DIM {
        let message = format!("heads of {} channels; at most {MAX_HEAD_DIM} fit on a GPU", shape.head_dim);
        return Err(Error::invalid("attention", message));
    }
    let grid = (layout.longest().div_ceil(ROWS) as u32, heads as u32, layout.sequences() as u32);
    let shared = 4 * (2 * TILE * (shape.head_dim + 1) + rows_kept * ROWS * shape.head_dim);
    Ok(Launch { grid, block: (THREADS, 1, 1), shared: shared as u32 })
}

/// Writes `y`, and the logarithm of every row's sum.
pub(super) fn forward(
    gpu: &Arc<Gpu>,
    [q, k, v]: [&Tensor; 3],
    (shape, layout, sinks): (&AttentionShape, &Layout, Option<&Tensor>),
    (y, lse): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    if tensor_cores::fit(shape, layout, q.dtype()) {
        return if tensor_cores::is_wide(shape) {
            wide::forward((gpu, Tiles::of(gpu)), [q, k, v], (shape, layout, sinks), (y, lse))
        } else {
            tensor_cores::forward((gpu, Blocks::of(gpu)), [q, k, v], (shape, layout, sinks), (y, lse))
        };
    }
    let launch = launch((shape, layout), (shape.heads, 1))?;
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let (segments, window, cap) = (layout.segments_on(gpu)?, window.unwrap_or(0), cap.unwrap_or(0.0));
    let kernel = Forward { q, k, v, segments, y, lse, heads, kv_heads, dim, window, scale, cap, sinks };
    // SAFETY: the caller checked the operands against the layout.
    unsafe { kernel.launch(gpu, number(q.dtype()), launch) }
}

/// Writes the gradients of queries, keys and values that are wanted.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    saved: &Saved<'_>,
    (shape, layout): (&AttentionShape, &Layout),
    grads: &mut [Option<Tensor>; 3],
) -> Result<()> {
    let ([q, k, v], segments) = (saved.inputs, layout.segments_on(gpu)?);
    if tensor_cores::fit(shape, layout, q.dtype()) {
        return if tensor_cores::is_wide(shape) {
            wide::backward((gpu, Tiles::of(gpu)), saved, (shape, layout), grads)
        } else {
            tensor_cores::backward((gpu, Blocks::of(gpu)), saved, (shape, layout), grads)
        };
    }
    let mut d = q.scratch_like(saved.lse.shape(), DType::F32);
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let cap = cap.unwrap_or(0.0);
    let (dy, lse, window, on) = (saved.dy, saved.lse, window.unwrap_or(0), (&**gpu, number(q.dtype())));
    let grid = (layout.longest().div_ceil(8) as u32, shape.heads as u32, layout.sequences() as u32);
    let kernel = Products { dy, y: saved.y, segments, d: &mut d, heads, dim };
    // SAFETY: a warp a row and head of every sequence.
    unsafe { kernel.launch(on.0, on.1, Launch { grid, block: (256, 1, 1), shared: 0 }) }?;
    let launch_queries = launch((shape, layout), (shape.heads, 2))?;
    let launch_keys = launch((shape, layout), (shape.kv_heads, 2))?;
    let (d, [dq, dk, dv]) = (&d, grads);
    if let Some(dq) = dq {
        let kernel = QueryGradient { q, k, v, dy, lse, d, segments, dq, heads, kv_heads, dim, window, scale, cap };
        // SAFETY: gradients have the shapes of what they belong to.
        unsafe { kernel.launch(on.0, on.1, launch_queries) }?;
    }
    if dk.is_some() || dv.is_some() {
        let (dk, dv) = (dk.as_mut(), dv.as_mut());
        let kernel =
            KeyValueGradient { q, k, v, dy, lse, d, segments, dk, dv, heads, kv_heads, dim, window, scale, cap };
        // SAFETY: as above; the kernel leaves out what leads nowhere.
        unsafe { kernel.launch(on.0, on.1, launch_keys) }?;
    }
    Ok(())
}
