//! Launches of the gradients for which scores are multiplied again: where not all of them are wanted, or shared memory has no room for one pass.

use super::super::{
    super::{AttentionShape, Saved},
    cuda::{Blocks, KEY_THREADS, ROWS, launch, padded},
};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, InRows, Source, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "tensor_cores_two_passes", "../../shape.cuh" "../products.cuh" "../scores.cuh" "../blocks.cuh" "kernel.cu", over Tensor;
    const CAPPED = "tensor_cores_two_passes_capped", "../capped.cuh" "../../shape.cuh" "../products.cuh" "../scores.cuh" "../blocks.cuh" "kernel.cu", over Tensor;
    along as Along { dy: *const T, y: InRows<*const T>, y_stride: i32, segments: *const u32, d: *mut f32, heads: i32, dim: i32 }
    query_gradient as QueryGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dq: InRows<*mut T>, dq_stride: i32, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
    }
    key_value_gradient as KeyValueGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dk: Option<InRows<*mut T>>, dk_stride: i32, dv: Option<InRows<*mut T>>, dv_stride: i32, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
        turns: i32,
    }
}

/// Rows of a tile of queries: as in the kernel.
const QUERIES: usize = 64;

/// The module of the kernels here, which is compiled when it is first met: a model has caps, or none.
fn source(shape: &AttentionShape) -> &'static Source {
    if shape.cap.is_some() { &CAPPED } else { &SOURCE }
}

/// As [`super::super::super::cuda::backward`].
pub(in super::super) fn backward(
    (gpu, blocks): (&Arc<Gpu>, Blocks),
    saved: &Saved<'_>,
    (shape, layout): (&AttentionShape, &Layout),
    [dq, dk, dv]: &mut [Option<Tensor>; 3],
) -> Result<()> {
    let ([q, k, v], segments, element) = (saved.inputs, layout.segments_on(gpu)?, number(saved.dy.dtype()));
    let (row, mut d) = (q.dtype().size() * padded(shape), q.scratch_like(saved.lse.shape(), DType::F32));
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let (dy, lse, window, cap, source) = (saved.dy, saved.lse, window.unwrap_or(0), cap.unwrap_or(0.0), source(shape));
    let kernel = Along { dy, y: saved.y, y_stride: saved.y.stride(), segments, d: &mut d, heads, dim };
    // SAFETY: a block for every `ROWS` rows and head of every sequence.
    unsafe { kernel.launch_from(source, gpu, element, launch(layout, heads, blocks.threads, 0)) }?;
    let d = &d;
    if let Some(dq) = dq {
        let shared = row * (2 * ROWS + (blocks.key_turns + 2) * blocks.few_keys);
        let dq_stride = dq.stride();
        let kernel =
            QueryGradient { q, k, v, dy, lse, d, segments, dq, dq_stride, heads, kv_heads, dim, window, scale, cap };
        // SAFETY: gradients have the shapes of what they belong to.
        unsafe { kernel.launch_from(source, gpu, element, launch(layout, heads, blocks.threads, shared)) }?;
    }
    if dk.is_some() || dv.is_some() {
        let numbers = 2 * QUERIES * DType::F32.size();
        let shared = |turns: usize| row * 2 * ROWS + turns * (row * 2 * QUERIES + numbers);
        let turns = if shared(blocks.turns) <= gpu.shared_memory_limit() as usize { blocks.turns } else { 1 };
        let [dk_stride, dv_stride] = [&*dk, &*dv].map(|it| it.as_ref().map_or(0, Tensor::stride));
        let (dk, dv) = (dk.as_mut(), dv.as_mut());
        let kernel = KeyValueGradient {
            q,
            k,
            v,
            dy,
            lse,
            d,
            segments,
            dk,
            dk_stride,
            dv,
            dv_stride,
            heads,
            kv_heads,
            dim,
            window,
            scale,
            cap,
            turns,
        };
        // SAFETY: as above; the kernel leaves out what leads nowhere.
        unsafe { kernel.launch_from(source, gpu, element, launch(layout, kv_heads, KEY_THREADS, shared(turns))) }?;
    }
    Ok(())
}
