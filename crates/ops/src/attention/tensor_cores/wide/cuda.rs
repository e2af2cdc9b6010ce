//! Launches of the kernels for tensor cores and heads of more than 128 channels.

use super::super::super::{AttentionShape, Saved};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, InRows, Launch, Source, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const LARGE = "tensor_cores_wide", "tiles_of_64.cuh" "../../shape.cuh" "wide.cuh" "../products.cuh" "../scores.cuh" "tiles.cuh" "forward.cuh" "kernel.cu", over Tensor;
    const LARGE_CAPPED = "tensor_cores_wide_capped", "../capped.cuh" "tiles_of_64.cuh" "../../shape.cuh" "wide.cuh" "../products.cuh" "../scores.cuh" "tiles.cuh" "forward.cuh" "kernel.cu", over Tensor;
    const SMALL = "tensor_cores_wide_small", "tiles_of_32.cuh" "../../shape.cuh" "wide.cuh" "../products.cuh" "../scores.cuh" "tiles.cuh" "forward.cuh" "kernel.cu", over Tensor;
    const SMALL_CAPPED = "tensor_cores_wide_small_capped", "../capped.cuh" "tiles_of_32.cuh" "../../shape.cuh" "wide.cuh" "../products.cuh" "../scores.cuh" "tiles.cuh" "forward.cuh" "kernel.cu", over Tensor;
    forward as Forward {
        q: *const T, k: *const T, v: *const T, segments: *const u32, y: InRows<*mut T>, y_stride: i32, lse: *mut f32,
        heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32, sinks: Option<*const f32>,
    }
    along as Along { dy: *const T, y: InRows<*const T>, y_stride: i32, segments: *const u32, d: *mut f32, heads: i32, dim: i32 }
    query_gradient as QueryGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dq: InRows<*mut T>, dq_stride: i32, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
    }
    value_gradient as ValueGradient {
        q: *const T, k: *const T, dy: *const T, lse: *const f32, segments: *const u32, dv: InRows<*mut T>,
        dv_stride: i32, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
    }
    key_gradient as KeyGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dk: InRows<*mut T>, dk_stride: i32, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
    }
}

/// Rows of a block that keeps one operand, and of one that keeps two; padded channels: as in the kernels.
const ROWS: usize = 128;
const HALF: usize = 64;
const DIM: usize = 256;
/// Threads of a block.
const THREADS: u32 = 256;

/// The modules for as much shared memory as a block can have, of which one is compiled when it is first met.
#[derive(Clone, Copy, Debug)]
pub(in crate::attention) struct Tiles {
    /// Rows of a tile.
    rows: usize,
    plain: &'static Source,
    capped: &'static Source,
}

pub(in crate::attention) const OF_64: Tiles = Tiles { rows: 64, plain: &LARGE, capped: &LARGE_CAPPED };
pub(in crate::attention) const OF_32: Tiles = Tiles { rows: 32, plain: &SMALL, capped: &SMALL_CAPPED };

impl Tiles {
    pub(in crate::attention) fn of(gpu: &Gpu) -> Tiles {
        if OF_64.fit(gpu) { OF_64 } else { OF_32 }
    }

    /// Whether a block has room for the larger ones.
    pub(in crate::attention) fn are_large(self) -> bool {
        self.rows == OF_64.rows
    }

    fn fit(self, gpu: &Gpu) -> bool {
        self.shared(2) <= gpu.shared_memory_limit() as usize
    }

    fn source(self, shape: &AttentionShape) -> &'static Source {
        if shape.cap.is_some() { self.capped } else { self.plain }
    }

    /// Shared memory for a block's rows and two tiles, with so many numbers for each row of a tile.
    fn shared(self, numbers: usize) -> usize {
        DType::Bf16.size() * DIM * (ROWS + 2 * self.rows) + DType::F32.size() * self.rows * numbers
    }

    /// A block for so many heads and every `rows` rows of a sequence.
    fn launch(self, layout: &Layout, heads: usize, rows: usize, numbers: usize) -> Launch {
        let grid = (heads as u32, layout.longest().div_ceil(rows) as u32, layout.sequences() as u32);
        Launch { grid, block: (THREADS, 1, 1), shared: self.shared(numbers) as u32 }
    }
}

/// For a plan: what these kernels do beside the operations of the op. They multiply padded channels and, backward, eight products where the
/// kernels of 128 channels, by whose rate a plan goes, have seven; and on Hopper `mma` has about half the rate of their `wgmma`.
fn expect(gpu: &Gpu, shape: &AttentionShape, counted: usize, backward: f64) {
    let by_mma = if gpu.info().compute_capability.major == 9 { 2.0 } else { 1.0 };
    let times = by_mma * backward * DIM as f64 / shape.head_dim as f64;
    gpu.takes_longer_by((counted as f64 * (times - 1.0)) as i64);
}

/// How the forward pass is started, of which a plan is told as well.
pub(in crate::attention) fn launch_forward(
    (gpu, tiles): (&Gpu, Tiles),
    (shape, layout): (&AttentionShape, &Layout),
) -> Launch {
    expect(gpu, shape, shape.flops(layout, 2), 1.0);
    tiles.launch(layout, shape.heads, ROWS, 0)
}

/// As [`super::super::super::cuda::forward`].
pub(in crate::attention) fn forward(
    (gpu, tiles): (&Arc<Gpu>, Tiles),
    [q, k, v]: [&Tensor; 3],
    (shape, layout, sinks): (&AttentionShape, &Layout, Option<&Tensor>),
    (y, lse): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let (segments, window, cap) = (layout.segments_on(gpu)?, window.unwrap_or(0), cap.unwrap_or(0.0));
    let y_stride = y.stride();
    let launch = launch_forward((gpu, tiles), (shape, layout));
    let kernel = Forward { q, k, v, segments, y, y_stride, lse, heads, kv_heads, dim, window, scale, cap, sinks };
    // SAFETY: the caller checked the operands against the layout.
    unsafe { kernel.launch_from(tiles.source(shape), gpu, number(q.dtype()), launch) }
}

/// As [`super::super::super::cuda::backward`].
pub(in crate::attention) fn backward(
    (gpu, tiles): (&Arc<Gpu>, Tiles),
    saved: &Saved<'_>,
    (shape, layout): (&AttentionShape, &Layout),
    [dq, dk, dv]: &mut [Option<Tensor>; 3],
) -> Result<()> {
    let ([q, k, v], segments, element) = (saved.inputs, layout.segments_on(gpu)?, number(saved.dy.dtype()));
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let (dy, lse, window, cap) = (saved.dy, saved.lse, window.unwrap_or(0), cap.unwrap_or(0.0));
    expect(gpu, shape, shape.flops(layout, 5), 8.0 / 7.0);
    let (source, on) = (tiles.source(shape), (&**gpu, element));
    if let Some(dv) = dv {
        let dv_stride = dv.stride();
        let kernel = ValueGradient { q, k, dy, lse, segments, dv, dv_stride, heads, kv_heads, dim, window, scale, cap };
        // SAFETY: gradients have the shapes of what they belong to.
        unsafe { kernel.launch_from(source, on.0, on.1, tiles.launch(layout, kv_heads, ROWS, 1)) }?;
    }
    if dq.is_none() && dk.is_none() {
        return Ok(());
    }
    let mut d = q.scratch_like(saved.lse.shape(), DType::F32);
    let kernel = Along { dy, y: saved.y, y_stride: saved.y.stride(), segments, d: &mut d, heads, dim };
    // SAFETY: a block for every `ROWS` rows and head of every sequence.
    unsafe { kernel.launch_from(source, on.0, on.1, Launch { shared: 0, ..tiles.launch(layout, heads, ROWS, 0) }) }?;
    let d = &d;
    if let Some(dq) = dq {
        let dq_stride = dq.stride();
        let kernel =
            QueryGradient { q, k, v, dy, lse, d, segments, dq, dq_stride, heads, kv_heads, dim, window, scale, cap };
        // SAFETY: as above.
        unsafe { kernel.launch_from(source, on.0, on.1, tiles.launch(layout, heads, HALF, 0)) }?;
    }
    if let Some(dk) = dk {
        let dk_stride = dk.stride();
        let kernel =
            KeyGradient { q, k, v, dy, lse, d, segments, dk, dk_stride, heads, kv_heads, dim, window, scale, cap };
        // SAFETY: as above.
        unsafe { kernel.launch_from(source, on.0, on.1, tiles.launch(layout, kv_heads, HALF, 2)) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::cuda::tests::{all_results, assert_near};
    use super::*;
    use crate::frozen_linear::test_support::with_gradient;
    use halfbyte_autograd::{Param, Tape};
    use halfbyte_cuda::{DeviceInfo, Event, Rates, Version};
    use halfbyte_tensor::Device;
    use halfbyte_testkit::cuda::gpu;

    #[test]
    fn tiles_of_either_size_agree() {
        let Some(gpu) = gpu().filter(|it| OF_64.fit(it)) else { return };
        let layout = Layout::new(&[140, 1, 65]).unwrap();
        for (head_dim, window, cap) in
            [(256, None, None), (144, Some(70), None), (256, Some(33), Some(0.5)), (208, None, Some(3.0))]
        {
            let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.2, window, cap };
            let [large, small] = [OF_64, OF_32].map(|tiles| {
                all_results(
                    &gpu,
                    (&shape, &layout),
                    |inputs, out| forward((&gpu, tiles), inputs, (&shape, &layout, None), out),
                    |saved, grads| backward((&gpu, tiles), saved, (&shape, &layout), grads),
                )
            });
            assert_near(&large, &small, &shape);
        }
    }

    #[test]
    fn a_plan_goes_by_what_these_kernels_multiply() {
        // An operation is a nanosecond.
        let seconds = |major: u32, head_dim: usize| {
            let compute_capability = Version { major, minor: 0 };
            let info = DeviceInfo { ordinal: 0, name: "planned".into(), compute_capability, memory_bytes: 1 << 34 };
            let shared_memory = if major == 9 { 227 << 10 } else { 163 << 10 };
            let gpu = Gpu::dry_at(info, shared_memory, Rates { kernels: 1e9, ..Rates::ENDLESS });
            let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.2, window: None, cap: Some(2.0) };
            let layout = Layout::new(&[64, 32]).unwrap();
            let of = |heads: usize| {
                let it = Tensor::zeros(&[layout.tokens(), heads * head_dim], DType::Bf16);
                it.to_device(&Device::Cuda(gpu.clone())).unwrap()
            };
            let (tape, dy) = (Tape::recording(), of(2));
            let params = [of(2), of(1), of(1)].map(|it| Param::new("p", it));
            let [q, k, v] = params.each_ref().map(|it| tape.param(it));
            let marks = [(); 2].map(|()| Event::timed(&gpu).unwrap());
            gpu.compute_stream().record(&marks[0]).unwrap();
            let y = crate::attention(&tape, [&q, &k, &v], shape, &layout).unwrap();
            let loss = with_gradient(&tape, &y, &dy);
            tape.backward(loss).unwrap();
            gpu.compute_stream().record(&marks[1]).unwrap();
            let products = shape.flops(&layout, 1) as f64 * 1e-9;
            (gpu.seconds_between(&marks[0], &marks[1]).unwrap() / products * 1e3).round() * 1e-3
        };
        let beside = seconds(8, 64) - 7.0;
        let near =
            |got: f64, expected: f64| assert!((got - beside - expected).abs() < 0.01, "{got}, {beside}, {expected}");
        near(seconds(8, 256), 2.0 + 5.0 * 8.0 / 7.0);
        near(seconds(9, 256), 2.0 * (2.0 + 5.0 * 8.0 / 7.0));
        near(seconds(8, 160), 1.6 * (2.0 + 5.0 * 8.0 / 7.0));
        // Others by one pass, of five products, whose blocks wait for each other.
        near(seconds(9, 64), 2.0 + 5.0 * 5.0 / 7.0 * 1.06);
    }

    #[test]
    fn small_tiles_fit_the_smallest_cards() {
        let limit = 99 << 10;
        assert!(OF_32.shared(2) <= limit && OF_64.shared(2) > limit && OF_64.shared(2) <= 163 << 10);
        let rows = |shared_memory: u32| {
            let compute_capability = Version { major: 8, minor: 0 };
            let info = DeviceInfo { ordinal: 0, name: "planned".into(), compute_capability, memory_bytes: 1 << 34 };
            Tiles::of(&Gpu::dry_at(info, shared_memory, Rates::ENDLESS)).rows
        };
        let least = OF_64.shared(2) as u32;
        assert_eq!([rows(99 << 10), rows(least - 1), rows(least), rows(163 << 10)], [32, 32, 64, 64]);
    }
}
