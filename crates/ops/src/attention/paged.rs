//! Launches of the kernels that read keys and values from the pages of a cache, for as many queries as blocks are worth while: the same blocks
//! as over rows, in modules of their own, which training does not need.

use super::{
    AttentionShape, cuda,
    tensor_cores::{
        cuda::{self as tensor_cores, Blocks},
        wide::cuda::{self as wide, Tiles},
    },
};
use crate::{kv_pages::KvPages, layout::Layout};
use halfbyte_cuda::{Gpu, InRows, Launch, Source, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "attention_paged", "shape.cuh" "../kv_pages/pages.cuh" "forward.cuh" "paged.cu", over Tensor;
    forward_paged as Forward {
        q: *const T, segments: *const u32, keys: usize, y: *mut T, lse: *mut f32, heads: i32, kv_heads: i32, dim: i32,
        window: i32, scale: f32, cap: f32, sinks: Option<*const f32>,
    }
}

kernels! {
    const NARROW = "tensor_cores_paged", "shape.cuh" "../kv_pages/pages.cuh" "tensor_cores/products.cuh" "tensor_cores/paged.cuh" "tensor_cores/scores.cuh" "tensor_cores/blocks.cuh" "tensor_cores/forward.cuh" "tensor_cores/paged.cu", over Tensor;
    const NARROW_CAPPED = "tensor_cores_paged_capped", "tensor_cores/capped.cuh" "shape.cuh" "../kv_pages/pages.cuh" "tensor_cores/products.cuh" "tensor_cores/paged.cuh" "tensor_cores/scores.cuh" "tensor_cores/blocks.cuh" "tensor_cores/forward.cuh" "tensor_cores/paged.cu", over Tensor;
    const WIDE = "tensor_cores_wide_paged", "tensor_cores/wide/tiles_of_64.cuh" "shape.cuh" "../kv_pages/pages.cuh" "tensor_cores/wide/wide.cuh" "tensor_cores/products.cuh" "tensor_cores/paged.cuh" "tensor_cores/scores.cuh" "tensor_cores/wide/tiles.cuh" "tensor_cores/wide/forward.cuh" "tensor_cores/wide/paged.cu", over Tensor;
    const WIDE_CAPPED = "tensor_cores_wide_paged_capped", "tensor_cores/capped.cuh" "tensor_cores/wide/tiles_of_64.cuh" "shape.cuh" "../kv_pages/pages.cuh" "tensor_cores/wide/wide.cuh" "tensor_cores/products.cuh" "tensor_cores/paged.cuh" "tensor_cores/scores.cuh" "tensor_cores/wide/tiles.cuh" "tensor_cores/wide/forward.cuh" "tensor_cores/wide/paged.cu", over Tensor;
    const SMALL = "tensor_cores_wide_small_paged", "tensor_cores/wide/tiles_of_32.cuh" "shape.cuh" "../kv_pages/pages.cuh" "tensor_cores/wide/wide.cuh" "tensor_cores/products.cuh" "tensor_cores/paged.cuh" "tensor_cores/scores.cuh" "tensor_cores/wide/tiles.cuh" "tensor_cores/wide/forward.cuh" "tensor_cores/wide/paged.cu", over Tensor;
    const SMALL_CAPPED = "tensor_cores_wide_small_paged_capped", "tensor_cores/capped.cuh" "tensor_cores/wide/tiles_of_32.cuh" "shape.cuh" "../kv_pages/pages.cuh" "tensor_cores/wide/wide.cuh" "tensor_cores/products.cuh" "tensor_cores/paged.cuh" "tensor_cores/scores.cuh" "tensor_cores/wide/tiles.cuh" "tensor_cores/wide/forward.cuh" "tensor_cores/wide/paged.cu", over Tensor;
    forward_paged as ForwardOnTensorCores {
        q: *const T, segments: *const u32, keys: usize, y: InRows<*mut T>, y_stride: i32, lse: *mut f32, heads: i32, kv_heads: i32, dim: i32,
        window: i32, scale: f32, cap: f32, sinks: Option<*const f32>,
    }
}

/// Writes `y`, and the logarithm of every row's sum.
pub(super) fn forward(
    gpu: &Arc<Gpu>,
    (q, pages, layer): (&Tensor, &KvPages, usize),
    (shape, layout, sinks): (&AttentionShape, &Layout, Option<&Tensor>),
    (y, lse): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let segments = layout.segments_and_pages_on(gpu, pages)?;
    let (keys, element) = (pages.offset(layer), number(q.dtype()));
    let moved = 2 * q.bytes() + lse.bytes() + pages.bytes_of(layout.visible_keys(window)) + segments.bytes();
    let (window, cap) = (window.unwrap_or(0), cap.unwrap_or(0.0));
    if !tensor_cores::fit(shape, layout, q.dtype()) {
        let launch = cuda::launch((shape, layout), (heads, 1))?;
        gpu.next_moves(moved);
        let kernel = Forward { q, segments, keys, y, lse, heads, kv_heads, dim, window, scale, cap, sinks };
        // SAFETY: the caller checked operands and pages against the layout.
        return unsafe { kernel.launch(gpu, element, launch) };
    }
    let (source, launch) = on_tensor_cores(gpu, q, (shape, layout));
    gpu.next_moves(moved);
    let y_stride = y.stride();
    let kernel =
        ForwardOnTensorCores { q, segments, keys, y, y_stride, lse, heads, kv_heads, dim, window, scale, cap, sinks };
    // SAFETY: as above; the launch is that of the module's blocks.
    unsafe { kernel.launch_from(source, gpu, element, launch) }
}

/// The module for such heads, and how its kernel is started.
fn on_tensor_cores(gpu: &Gpu, q: &Tensor, (shape, layout): (&AttentionShape, &Layout)) -> (&'static Source, Launch) {
    let capped = shape.cap.is_some();
    if tensor_cores::is_wide(shape) {
        let tiles = Tiles::of(gpu);
        let source = match (tiles.are_large(), capped) {
            (true, false) => &WIDE,
            (true, true) => &WIDE_CAPPED,
            (false, false) => &SMALL,
            (false, true) => &SMALL_CAPPED,
        };
        return (source, wide::launch_forward((gpu, tiles), (shape, layout)));
    }
    let source = if capped { &NARROW_CAPPED } else { &NARROW };
    (source, tensor_cores::launch_forward(Blocks::of(gpu), (shape, layout), q.dtype()))
}
