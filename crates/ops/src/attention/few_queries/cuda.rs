//! Launches of the kernels for few queries.

use super::super::AttentionShape;
use crate::{kv_pages::KvPages, layout::Layout};
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "few_queries", "../shape.cuh" "../../kv_pages/pages.cuh" "kernel.cu", over Tensor;
    attend_parts as AttendParts {
        q: *const T, segments: *const u32, keys: usize, parts: *mut f32, y: *mut T, heads: i32, kv_heads: i32, dim: i32,
        window: i32, scale: f32, cap: f32, keys_a_part: i32, number: i32, lanes: i32, sinks: Option<*const f32>,
    }
    join_parts as JoinParts { parts: *const f32, y: *mut T, heads: i32, dim: i32, number: i32, sinks: Option<*const f32> }
}

/// Up to so many queries of a sequence, blocks that share tiles of keys gain nothing.
const MAX_QUERIES: usize = 4;
/// Blocks that occupy a large device.
const BLOCKS: usize = 256;
/// Keys of a part at least, that a block be worth its start; more where there are many heads, whose parts need not be put together.
const FEWEST_KEYS: usize = 128;
const MANY_HEADS: usize = 16;
/// Channels of a lane; query heads that a block takes at a time where some share their keys: as in the kernels.
const CHANNELS: usize = 8;
const HEADS: usize = 4;
/// Warps of a block.
const WARPS: usize = 8;

/// Whether the layout has few queries a sequence, and the heads are whole pieces of channels.
pub(in crate::attention) fn fit(shape: &AttentionShape, layout: &Layout) -> bool {
    let pieces = shape.head_dim / CHANNELS;
    layout.longest() <= MAX_QUERIES && shape.head_dim.is_multiple_of(CHANNELS) && (1..=32).contains(&pieces)
}

/// How many keys a block takes of those that a query sees, and how many blocks take all of them. Both stay what they are for many
/// tokens, so that these ask for the same.
fn parts(keys: usize, kv_heads: usize) -> (usize, usize) {
    let fewest = if kv_heads < MANY_HEADS { FEWEST_KEYS } else { 2 * FEWEST_KEYS };
    let keys = keys.next_multiple_of(fewest);
    let keys_a_part = (keys * kv_heads).div_ceil(BLOCKS).next_multiple_of(64).max(fewest);
    (keys_a_part, keys.div_ceil(keys_a_part))
}

/// Writes `y`, of the new rows of each sequence over all keys that they see.
pub(in crate::attention) fn forward(
    gpu: &Arc<Gpu>,
    (q, pages, layer): (&Tensor, &KvPages, usize),
    (shape, layout, sinks): (&AttentionShape, &Layout, Option<&Tensor>),
    y: &mut Tensor,
) -> Result<()> {
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let keys = layout.furthest().min(window.unwrap_or(usize::MAX));
    let (keys_a_part, count) = parts(keys, kv_heads);
    let (lanes, element) = ((dim / CHANNELS).next_power_of_two(), number(q.dtype()));
    // Where there is one part, nothing is written there.
    let kept = if count > 1 { q.rows() * heads * count * (dim + 2) } else { 1 };
    let mut parts = q.scratch_like(&[kept], DType::F32);
    let at_a_time = WARPS * if heads == kv_heads { 1 } else { HEADS };
    let launch = Launch {
        grid: ((kv_heads * count) as u32, layout.longest() as u32, layout.sequences() as u32),
        block: (32 * WARPS as u32, 1, 1),
        shared: (at_a_time * (dim + 2) * DType::F32.size()) as u32,
    };
    let segments = layout.segments_and_pages_on(gpu, pages)?;
    let moved = 2 * q.bytes() + pages.bytes_of(layout.visible_keys(window)) + segments.bytes();
    gpu.next_moves(moved + if count > 1 { parts.bytes() } else { 0 });
    let (window, cap) = (window.unwrap_or(0), cap.unwrap_or(0.0));
    let kernel = AttendParts {
        q,
        segments,
        keys: pages.offset(layer),
        parts: &mut parts,
        y: &mut *y,
        heads,
        kv_heads,
        dim,
        window,
        scale,
        cap,
        keys_a_part,
        number: count,
        lanes,
        sinks,
    };
    // SAFETY: the caller checked operands and pages against the layout, whose keys the parts reach over.
    unsafe { kernel.launch(gpu, element, launch) }?;
    if count > 1 {
        let block = dim.next_multiple_of(32).min(256) as u32;
        let launch = Launch { grid: (heads as u32, q.rows() as u32, 1), block: (block, 1, 1), shared: 0 };
        // SAFETY: a block a head and row, each with so many parts.
        unsafe { JoinParts { parts: &parts, y, heads, dim, number: count, sinks }.launch(gpu, element, launch) }?;
    }
    Ok(())
}
