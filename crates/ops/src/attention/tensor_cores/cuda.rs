//! Launches of the kernels for tensor cores: of heads of up to 128 channels here, of wider ones in `wide`.

use super::super::{AttentionShape, Saved};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, InRows, Launch, Source, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "tensor_cores", "../shape.cuh" "products.cuh" "scores.cuh" "kernel.cu", over Tensor;
    const CAPPED = "tensor_cores_capped", "capped.cuh" "../shape.cuh" "products.cuh" "scores.cuh" "kernel.cu", over Tensor;
    forward as Forward {
        q: *const T, k: *const T, v: *const T, segments: *const u32, y: InRows<*mut T>, y_stride: i32, lse: *mut f32,
        heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
        sinks: Option<*const f32>,
    }
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

/// Rows that a block takes, and rows of a tile of queries: as in the kernels.
const ROWS: usize = 128;
const QUERIES: usize = 64;
/// Threads of a block whose rows are keys.
const KEY_THREADS: u32 = 256;

/// How the kernels of an architecture divide the work.
#[derive(Clone, Copy, Debug)]
pub(in crate::attention) struct Blocks {
    /// Threads of a block whose rows are queries.
    threads: u32,
    /// Keys of a tile in the forward pass, and for the gradient of queries.
    keys: usize,
    few_keys: usize,
    /// Tiles of keys that are in shared memory at a time, for the gradient of queries.
    key_turns: usize,
    /// Tiles of queries that are, for the gradients of keys and values, where there is room.
    turns: usize,
}

/// Products run on while the next tiles are loaded, so that a third has to be there.
const HOPPER: Blocks = Blocks { threads: 256, keys: 128, few_keys: 64, key_turns: 3, turns: 3 };
const OTHERS: Blocks = Blocks { threads: 128, keys: 32, few_keys: 32, key_turns: 2, turns: 2 };

impl Blocks {
    pub(in crate::attention) fn of(gpu: &Gpu) -> Blocks {
        if gpu.info().compute_capability.major == 9 { HOPPER } else { OTHERS }
    }
}
/// Channels of a head at most, as the kernels of `wide` have them.
const WIDEST: usize = 256;
/// Shorter rows than this would leave most of a block idle.
const SHORTEST: usize = 32;

/// Whether tensor cores can do it: 16-bit numbers, whole pieces of channels, a scale that keeps the order of the scores.
pub(in crate::attention) fn fit(shape: &AttentionShape, layout: &Layout, dtype: DType) -> bool {
    let head = shape.head_dim.is_multiple_of(16) && shape.head_dim <= WIDEST;
    dtype != DType::F32 && head && shape.scale > 0.0 && layout.longest() >= SHORTEST
}

/// Whether heads are so wide that the kernels of `wide` take them.
pub(in crate::attention) fn is_wide(shape: &AttentionShape) -> bool {
    shape.head_dim > 128
}

/// The module of the kernels here, which is compiled when it is first met: a model has caps, or none.
fn source(shape: &AttentionShape) -> &'static Source {
    if shape.cap.is_some() { &CAPPED } else { &SOURCE }
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
    (gpu, blocks): (&Arc<Gpu>, Blocks),
    [q, k, v]: [&Tensor; 3],
    (shape, layout, sinks): (&AttentionShape, &Layout, Option<&Tensor>),
    (y, lse): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let shared = q.dtype().size() * padded(shape) * (ROWS + 4 * blocks.keys);
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let (segments, window, cap) = (layout.segments_on(gpu)?, window.unwrap_or(0), cap.unwrap_or(0.0));
    let y_stride = y.stride();
    let kernel = Forward { q, k, v, segments, y, y_stride, lse, heads, kv_heads, dim, window, scale, cap, sinks };
    // SAFETY: the caller checked the operands against the layout.
    unsafe { kernel.launch_from(source(shape), gpu, number(q.dtype()), launch(layout, heads, blocks.threads, shared)) }
}

/// As [`super::super::cuda::backward`].
pub(in crate::attention) fn backward(
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

#[cfg(test)]
pub(in crate::attention) mod tests {
    use super::*;
    use halfbyte_tensor::Device;
    use halfbyte_testkit::{cuda::gpu, noise_in};

    /// `y`, `lse` and the gradients, as f32, of some numbers in bf16.
    pub(in crate::attention) fn all_results(
        gpu: &Arc<Gpu>,
        (shape, layout): (&AttentionShape, &Layout),
        forward: impl Fn([&Tensor; 3], (&mut Tensor, &mut Tensor)) -> Result<()>,
        backward: impl Fn(&Saved<'_>, &mut [Option<Tensor>; 3]) -> Result<()>,
    ) -> Vec<Vec<f32>> {
        let of = |heads: usize, seed| {
            let it = noise_in(&[layout.tokens(), heads * shape.head_dim], DType::Bf16, seed, -1.0, 1.0);
            it.to_device(&Device::Cuda(gpu.clone())).unwrap()
        };
        let [q, k, v, dy] =
            [(shape.heads, 1), (shape.kv_heads, 2), (shape.kv_heads, 3), (shape.heads, 4)].map(|(h, s)| of(h, s));
        let (mut y, mut lse) =
            (q.scratch_like(q.shape(), q.dtype()), q.scratch_like(&[shape.heads * q.rows()], DType::F32));
        forward([&q, &k, &v], (&mut y, &mut lse)).unwrap();
        let mut grads = [&q, &k, &v].map(|it| Some(it.scratch_like(it.shape(), it.dtype())));
        backward(&Saved { inputs: [&q, &k, &v], y: &y, dy: &dy, lse: &lse }, &mut grads).unwrap();
        let all = [y, lse].into_iter().chain(grads.into_iter().flatten());
        all.map(|it| it.to_device(&Device::Cpu).unwrap().to_f32_vec()).collect()
    }

    /// Sums in another order, each rounded to bf16 in the end.
    pub(in crate::attention) fn assert_near(a: &[Vec<f32>], b: &[Vec<f32>], shape: &AttentionShape) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let largest = b.iter().fold(0.0f32, |most, it| most.max(it.abs()));
            let near = a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2.0f32.powi(-7) * largest);
            assert!(near, "result {i} of {shape:?}");
        }
    }

    fn run(blocks: Blocks, gpu: &Arc<Gpu>, (shape, layout): (&AttentionShape, &Layout)) -> Vec<Vec<f32>> {
        all_results(
            gpu,
            (shape, layout),
            |inputs, out| forward((gpu, blocks), inputs, (shape, layout, None), out),
            |saved, grads| backward((gpu, blocks), saved, (shape, layout), grads),
        )
    }

    #[test]
    fn the_blocks_of_every_architecture_agree() {
        // A real device has the kernels of one.
        let Some(gpu) = gpu().filter(|it| it.info().name == "CUDA on the CPU") else { return };
        let layout = Layout::new(&[140, 31]).unwrap();
        for (head_dim, window, cap) in
            [(128, None, None), (64, Some(70), None), (128, Some(70), Some(0.5)), (64, None, Some(3.0))]
        {
            let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.2, window, cap };
            let [hopper, others] = [HOPPER, OTHERS].map(|it| run(it, &gpu, (&shape, &layout)));
            let alone = run(Blocks { turns: 1, ..OTHERS }, &gpu, (&shape, &layout));
            assert_eq!(others, alone, "{shape:?}: how far copies run ahead changes no bit");
            assert_near(&hopper, &others, &shape);
        }
    }

    /// With a window of one a row sees a single score, which is the logarithm of its sum.
    #[test]
    fn a_capped_score_is_off_by_less_than_its_cap_times_two_to_the_minus_21() {
        let Some(gpu) = gpu() else { return };
        let rows = 4096;
        let (device, layout) = (Device::Cuda(gpu), Layout::new(&[rows]).unwrap());
        // From far below to far beyond the cap, both signs, all in bf16.
        let score = |i: usize| {
            let size = 1.004f32.powi(i as i32 / 2 - 1400);
            half::bf16::from_f32(if i.is_multiple_of(2) { size } else { -size }).to_f32()
        };
        let mut seen = [f64::INFINITY, 0.0];
        for (head_dim, cap, scale) in [(16, 1.0, 1.0), (64, 50.0, 8.0), (256, 30.0, 0.0625)] {
            let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim, scale, window: Some(1), cap: Some(cap) };
            let first = |of: &dyn Fn(usize) -> f32| {
                let values = (0..rows * head_dim).map(|i| if i % head_dim == 0 { of(i / head_dim) } else { 0.0 });
                let it = Tensor::from_vec(&[rows, head_dim], values.collect()).to_dtype(DType::Bf16);
                it.to_device(&device).unwrap()
            };
            let (q, k) = (first(&score), first(&|_| 4.0));
            let [_, lse] = crate::attention::forward([&q, &k, &k], (&shape, None, 0), &layout).unwrap();
            for (i, got) in lse.to_device(&Device::Cpu).unwrap().to_f32_vec().into_iter().enumerate() {
                let x = f64::from(scale) * 4.0 * f64::from(score(i)) / f64::from(cap);
                seen = [seen[0].min(x.abs()), seen[1].max(x.abs())];
                let off = (f64::from(got) / f64::from(cap) - x.tanh()).abs();
                assert!(off < 2f64.powi(-21), "tanh({x}) is off by {off}, of {shape:?}");
            }
        }
        assert!(seen[0] < 1e-3 && seen[1] > 10.0, "{seen:?}");
    }
}
