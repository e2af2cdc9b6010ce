//! Launches of the kernels that make all three gradients in one pass over the scores.

use super::super::{
    super::{AttentionShape, Saved},
    cuda::{Blocks, KEY_THREADS, ROWS, launch, padded},
};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, InRows, Source, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "tensor_cores_one_pass", "../../shape.cuh" "../products.cuh" "../scores.cuh" "kernel.cu", over Tensor;
    const CAPPED = "tensor_cores_one_pass_capped", "../capped.cuh" "../../shape.cuh" "../products.cuh" "../scores.cuh" "kernel.cu", over Tensor;
    along as Along {
        dy: *const T, y: InRows<*const T>, y_stride: i32, segments: *const u32, d: *mut f32, added: *mut u32, heads: i32, dim: i32,
    }
    gradients as Gradients {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32, sums: *mut f32,
        added: *mut u32, first_kv_head: i32, dq: InRows<*mut T>, dq_stride: i32, dk: InRows<*mut T>, dk_stride: i32, dv: InRows<*mut T>, dv_stride: i32,
        heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32, turns: i32,
    }
}

/// Warps of a block, each of which has a word for the tiles that it adds to: as in the kernel.
const WARPS: usize = KEY_THREADS as usize / 32;
/// What blocks lose by waiting and by ends that are not even, for a plan: in a simulation of 512 blocks for each of four rows of 2,048 tokens.
const WAITING: f64 = 1.06;

/// The module of the kernels here, which is compiled when it is first met: a model has caps, or none.
fn source(shape: &AttentionShape) -> &'static Source {
    if shape.cap.is_some() { &CAPPED } else { &SOURCE }
}

/// Queries of a tile: as in the kernel.
fn queries(shape: &AttentionShape) -> usize {
    if shape.head_dim <= 64 { 128 } else { 64 }
}

/// Tiles of all sequences at most, each of which may end with one that is not whole.
fn tiles(shape: &AttentionShape, layout: &Layout) -> usize {
    layout.tokens() / queries(shape) + layout.sequences()
}

/// Words by which the warps of blocks tell each other how many have added to a tile of a head.
fn words(shape: &AttentionShape, layout: &Layout) -> usize {
    tiles(shape, layout) * shape.heads * WARPS
}

/// Shared memory of a block: its rows twice, tiles of queries and of their gradients with two numbers a row, and slopes twice.
fn shared(blocks: Blocks, shape: &AttentionShape) -> usize {
    let (row, queries) = (DType::Bf16.size() * padded(shape), queries(shape));
    let turn = 2 * queries * (row + DType::F32.size());
    2 * ROWS * row + blocks.turns * turn + 2 * ROWS * queries * DType::Bf16.size()
}

/// Elements of the sums of so many tiles, for a head of keys and values.
fn sums(shape: &AttentionShape, tiles: usize) -> usize {
    tiles * shape.group() * queries(shape) * padded(shape)
}

/// Heads of keys and values whose sums may be there together.
fn heads_together(blocks: Blocks, shape: &AttentionShape, layout: &Layout) -> usize {
    let a_head = DType::F32.size() * sums(shape, tiles(shape, layout));
    (blocks.sums / a_head.max(1)).min(shape.kv_heads)
}

/// Tiles to which more than one block adds, where rows see all that are before them: those behind a block's rows.
fn tiles_with_turns(shape: &AttentionShape, layout: &Layout) -> usize {
    let of = |count: usize| count.saturating_sub(ROWS).div_ceil(queries(shape));
    layout.segments().iter().map(|it| of(it.count)).sum()
}

/// Whether there is room for it, in shared memory and for the sums.
pub(in super::super) fn fit((gpu, blocks): (&Gpu, Blocks), (shape, layout): (&AttentionShape, &Layout)) -> bool {
    shared(blocks, shape) <= gpu.shared_memory_limit() as usize && heads_together(blocks, shape, layout) > 0
}

/// As [`super::super::super::cuda::backward`], of gradients that are all wanted.
pub(in super::super) fn backward(
    (gpu, blocks): (&Arc<Gpu>, Blocks),
    saved: &Saved<'_>,
    (shape, layout): (&AttentionShape, &Layout),
    [dq, dk, dv]: [&mut Tensor; 3],
) -> Result<()> {
    let ([q, k, v], segments, element) = (saved.inputs, layout.segments_on(gpu)?, number(saved.dy.dtype()));
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let (dy, lse, window, cap, source) = (saved.dy, saved.lse, window.unwrap_or(0), cap.unwrap_or(0.0), source(shape));
    // The rates of attention are those of two passes: seven products, of which the op counts five.
    let counted = shape.flops(layout, 5) as f64;
    gpu.takes_longer_by((counted * (5.0 / 7.0 * WAITING - 1.0)) as i64);
    let mut d = q.scratch_like(lse.shape(), DType::F32);
    let mut added = q.scratch_like(&[words(shape, layout)], DType::U32);
    let kernel =
        Along { dy, y: saved.y, y_stride: saved.y.stride(), segments, d: &mut d, added: &mut added, heads, dim };
    // SAFETY: a block for every `ROWS` rows and head of every sequence, and words for all tiles.
    unsafe { kernel.launch_from(source, gpu, element, launch(layout, heads, blocks.threads, 0)) }?;
    let strip = heads_together(blocks, shape, layout);
    let mut sums = q.scratch_like(&[strip * sums(shape, tiles(shape, layout))], DType::F32);
    let strides = [&*dq, &*dk, &*dv].map(Tensor::stride);
    for first_kv_head in (0..kv_heads).step_by(strip) {
        let kernel = Gradients {
            q,
            k,
            v,
            dy,
            lse,
            d: &d,
            segments,
            sums: &mut sums,
            added: &mut added,
            first_kv_head,
            dq: &mut *dq,
            dq_stride: strides[0],
            dk: &mut *dk,
            dk_stride: strides[1],
            dv: &mut *dv,
            dv_stride: strides[2],
            heads,
            kv_heads,
            dim,
            window,
            scale,
            cap,
            turns: blocks.turns,
        };
        let here = strip.min(kv_heads - first_kv_head);
        let moved =
            [q, k, v, dy, &*kernel.dq, &*kernel.dk, &*kernel.dv, lse, &d].map(Tensor::bytes).iter().sum::<usize>();
        gpu.next_moves(
            moved * here / kv_heads + 2 * DType::F32.size() * here * self::sums(shape, tiles_with_turns(shape, layout)),
        );
        let launch = launch(layout, here, KEY_THREADS, shared(blocks, shape));
        // SAFETY: gradients have the shapes of what they belong to, and the sums are those of the heads of the strip.
        unsafe { kernel.launch_from(source, gpu, element, launch) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the tiles that the kernel numbers, the last one's last word and the last of its sums, of short sequences and long ones, in every order.
    #[test]
    fn every_tile_has_words_and_sums() {
        for head_dim in [64, 128] {
            let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim, scale: 1.0, window: None, cap: None };
            let queries = queries(&shape);
            for lengths in [vec![1], vec![128], vec![129, 1, 1], vec![1, 1, 300], vec![127; 5], vec![64, 65, 63, 128]] {
                let layout = Layout::new(&lengths).unwrap();
                let numbers = layout.segments().iter().enumerate().map(|(sequence, it)| {
                    let of = |tile: usize| it.first / queries + sequence + tile;
                    (of(0), of(it.count.div_ceil(queries)))
                });
                let numbers: Vec<_> = numbers.collect();
                assert!(numbers.windows(2).all(|it| it[0].1 <= it[1].0), "{lengths:?}: tiles have a number each");
                let end = numbers.last().unwrap().1;
                assert!(words(&shape, &layout) >= end * 6 * 8, "{lengths:?}");
                assert!(sums(&shape, tiles(&shape, &layout)) >= end * 2 * queries * head_dim, "{lengths:?}");
                assert!(tiles(&shape, &layout) <= end + layout.sequences(), "{lengths:?}: no more than is needed");
            }
        }
    }
}
