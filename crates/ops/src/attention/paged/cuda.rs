//! Launches of the kernels that read keys and values from the pages of a cache, for as many queries as blocks are worth while: the same blocks
//! as over rows, in modules of their own, which training does not need.

use super::super::{
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
    const SOURCE = "attention_paged", "../shape.cuh" "../../kv_pages/pages.cuh" "../forward.cuh" "kernel.cu", over Tensor;
    forward_paged as Forward {
        q: *const T, segments: *const u32, keys: usize, y: *mut T, lse: *mut f32, heads: i32, kv_heads: i32, dim: i32,
        window: i32, scale: f32, cap: f32, sinks: Option<*const f32>,
    }
}

kernels! {
    const NARROW = "tensor_cores_paged", "../shape.cuh" "../../kv_pages/pages.cuh" "../tensor_cores/products.cuh" "tiles.cuh" "../tensor_cores/scores.cuh" "../tensor_cores/blocks.cuh" "../tensor_cores/forward.cuh" "tensor_cores.cu", over Tensor;
    const NARROW_CAPPED = "tensor_cores_paged_capped", "../tensor_cores/capped.cuh" "../shape.cuh" "../../kv_pages/pages.cuh" "../tensor_cores/products.cuh" "tiles.cuh" "../tensor_cores/scores.cuh" "../tensor_cores/blocks.cuh" "../tensor_cores/forward.cuh" "tensor_cores.cu", over Tensor;
    const WIDE = "tensor_cores_wide_paged", "../tensor_cores/wide/tiles_of_64.cuh" "../shape.cuh" "../../kv_pages/pages.cuh" "../tensor_cores/wide/wide.cuh" "../tensor_cores/products.cuh" "tiles.cuh" "../tensor_cores/scores.cuh" "../tensor_cores/wide/tiles.cuh" "../tensor_cores/wide/forward.cuh" "tensor_cores.cu", over Tensor;
    const WIDE_CAPPED = "tensor_cores_wide_paged_capped", "../tensor_cores/capped.cuh" "../tensor_cores/wide/tiles_of_64.cuh" "../shape.cuh" "../../kv_pages/pages.cuh" "../tensor_cores/wide/wide.cuh" "../tensor_cores/products.cuh" "tiles.cuh" "../tensor_cores/scores.cuh" "../tensor_cores/wide/tiles.cuh" "../tensor_cores/wide/forward.cuh" "tensor_cores.cu", over Tensor;
    const SMALL = "tensor_cores_wide_small_paged", "../tensor_cores/wide/tiles_of_32.cuh" "../shape.cuh" "../../kv_pages/pages.cuh" "../tensor_cores/wide/wide.cuh" "../tensor_cores/products.cuh" "tiles.cuh" "../tensor_cores/scores.cuh" "../tensor_cores/wide/tiles.cuh" "../tensor_cores/wide/forward.cuh" "tensor_cores.cu", over Tensor;
    const SMALL_CAPPED = "tensor_cores_wide_small_paged_capped", "../tensor_cores/capped.cuh" "../tensor_cores/wide/tiles_of_32.cuh" "../shape.cuh" "../../kv_pages/pages.cuh" "../tensor_cores/wide/wide.cuh" "../tensor_cores/products.cuh" "tiles.cuh" "../tensor_cores/scores.cuh" "../tensor_cores/wide/tiles.cuh" "../tensor_cores/wide/forward.cuh" "tensor_cores.cu", over Tensor;
    forward_paged as ForwardOnTensorCores {
        q: *const T, segments: *const u32, keys: usize, y: InRows<*mut T>, y_stride: i32, lse: *mut f32, heads: i32, kv_heads: i32, dim: i32,
        window: i32, scale: f32, cap: f32, sinks: Option<*const f32>,
    }
}

/// How tensor cores divide the work, for heads of up to 128 channels and for wider ones.
#[derive(Clone, Copy, Debug)]
pub(in crate::attention) struct Kinds {
    blocks: Blocks,
    tiles: Tiles,
}

impl Kinds {
    pub(in crate::attention) fn of(gpu: &Gpu) -> Kinds {
        Kinds { blocks: Blocks::of(gpu), tiles: Tiles::of(gpu) }
    }
}

/// Writes `y`, and the logarithm of every row's sum.
pub(in crate::attention) fn forward(
    (gpu, kinds): (&Arc<Gpu>, Kinds),
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
    let (source, launch) = on_tensor_cores((gpu, kinds), q, (shape, layout));
    gpu.next_moves(moved);
    let y_stride = y.stride();
    let kernel =
        ForwardOnTensorCores { q, segments, keys, y, y_stride, lse, heads, kv_heads, dim, window, scale, cap, sinks };
    // SAFETY: as above; the launch is that of the module's blocks.
    unsafe { kernel.launch_from(source, gpu, element, launch) }
}

/// The module for such heads, and how its kernel is started.
fn on_tensor_cores(
    (gpu, Kinds { blocks, tiles }): (&Gpu, Kinds),
    q: &Tensor,
    (shape, layout): (&AttentionShape, &Layout),
) -> (&'static Source, Launch) {
    let capped = shape.cap.is_some();
    if tensor_cores::is_wide(shape) {
        let source = match (tiles.are_large(), capped) {
            (true, false) => &WIDE,
            (true, true) => &WIDE_CAPPED,
            (false, false) => &SMALL,
            (false, true) => &SMALL_CAPPED,
        };
        return (source, wide::launch_forward((gpu, tiles), (shape, layout)));
    }
    let source = if capped { &NARROW_CAPPED } else { &NARROW };
    (source, tensor_cores::launch_forward(blocks, (shape, layout), q.dtype()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attention::tensor_cores::{
            cuda::{HOPPER, OTHERS},
            wide::cuda::{OF_32, OF_64},
        },
        kv_pages::tests::paged,
    };
    use halfbyte_tensor::{DType, Device};
    use halfbyte_testkit::{cuda::gpu, noise};

    /// Every kernel gives from pages the bits that it gives from rows: also where tiles are of several pages, the first of which a window has
    /// forgotten.
    #[test]
    fn pages_give_the_bits_that_rows_give() {
        let Some(gpu) = gpu().filter(|it| it.info().name == "CUDA on the CPU") else { return };
        let device = Device::Cuda(gpu.clone());
        let narrow = [(HOPPER, OF_64), (OTHERS, OF_64)].map(|it| (it, 128));
        let wide = [(HOPPER, OF_64), (HOPPER, OF_32)].map(|it| (it, 144));
        for ((blocks, tiles), head_dim) in narrow.into_iter().chain(wide).chain([((HOPPER, OF_64), 48)]) {
            for (dtype, window, cap) in
                [(DType::Bf16, None, None), (DType::F16, Some(20), Some(0.5)), (DType::F32, Some(70), None)]
            {
                // All rows at once, of which the last ones are the new rows of a cache.
                let (all, new) = ([290, 33], [150, 33]);
                let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.2, window, cap };
                let there = |heads: usize, seed| {
                    noise(&[all[0] + all[1], heads * head_dim], dtype, seed).to_device(&device).unwrap()
                };
                let [q, k, v] = [(2, 1), (1, 2), (1, 3)].map(|(heads, seed)| there(heads, seed));
                let results =
                    |q: &Tensor| (q.scratch_like(q.shape(), q.dtype()), q.scratch_like(&[2 * q.rows()], DType::F32));
                let (mut expected, mut lse) = results(&q);
                let layout = Layout::new(&all).unwrap();
                let (of, out) = ((&shape, &layout, None), (&mut expected, &mut lse));
                match (dtype, head_dim) {
                    (DType::F32, _) => cuda::forward(&gpu, [&q, &k, &v], of, out),
                    (_, 144) => wide::forward((&gpu, tiles), [&q, &k, &v], of, out),
                    _ => tensor_cores::forward((&gpu, blocks), [&q, &k, &v], of, out),
                }
                .unwrap();
                let places = [(new[0], all[0] - new[0], 0), (new[1], all[1] - new[1], all[0])];
                let ((pages, layer), layout) = paged([&k, &v], &places, window);
                let starts = [(all[0] - new[0], new[0]), (all[0], new[1])];
                let rows = |x: &Tensor| {
                    let parts = starts.map(|(first, count)| x.rows_at(first, count).unwrap());
                    let mut both = x.scratch_like(&[new[0] + new[1], x.cols()], x.dtype());
                    both.put_rows(0, &parts[0]).unwrap();
                    both.put_rows(new[0], &parts[1]).unwrap();
                    both
                };
                let q = rows(&q);
                let (mut y, mut lse) = results(&q);
                let of = (&shape, &layout, None);
                forward((&gpu, Kinds { blocks, tiles }), (&q, &pages, layer), of, (&mut y, &mut lse)).unwrap();
                let [y, expected] = [y, rows(&expected)].map(|it| it.to_device(&Device::Cpu).unwrap().to_f32_vec());
                assert_eq!(y, expected, "{blocks:?} {shape:?} {dtype}");
            }
        }
    }
}
