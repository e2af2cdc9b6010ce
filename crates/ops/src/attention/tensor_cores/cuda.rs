//! Launches of the kernels for tensor cores: of heads of up to 128 channels here, of wider ones in `wide`.

use super::{
    super::{AttentionShape, Saved},
    one_pass::cuda as one_pass,
    two_passes::cuda as two_passes,
};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, InRows, Launch, Source, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "tensor_cores", "../shape.cuh" "products.cuh" "scores.cuh" "blocks.cuh" "forward.cuh" "kernel.cu", over Tensor;
    const CAPPED = "tensor_cores_capped", "capped.cuh" "../shape.cuh" "products.cuh" "scores.cuh" "blocks.cuh" "forward.cuh" "kernel.cu", over Tensor;
    forward as Forward {
        q: *const T, k: *const T, v: *const T, segments: *const u32, y: InRows<*mut T>, y_stride: i32, lse: *mut f32,
        heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, cap: f32,
        sinks: Option<*const f32>,
    }
}

/// Rows that a block takes: as in the kernels.
pub(super) const ROWS: usize = 128;
/// Threads of a block whose rows are keys.
pub(super) const KEY_THREADS: u32 = 256;

/// How the kernels of an architecture divide the work.
#[derive(Clone, Copy, Debug)]
pub(in crate::attention) struct Blocks {
    /// Threads of a block whose rows are queries.
    pub(super) threads: u32,
    /// Keys of a tile in the forward pass, and for the gradient of queries.
    pub(super) keys: usize,
    pub(super) few_keys: usize,
    /// Tiles of keys that are in shared memory at a time, for the gradient of queries.
    pub(super) key_turns: usize,
    /// Tiles of queries that are, for the gradients of keys and values, where there is room.
    pub(super) turns: usize,
    /// Bytes that the sums of one pass over the scores may take; 0 where there are two. More heads than they hold are done one after the other,
    /// and a row for which one head is too much by two passes. Beside products that are waited for, one pass wants more registers than there are.
    pub(super) sums: usize,
}

/// Products run on while the next tiles are loaded, so that a third has to be there.
pub(in crate::attention) const HOPPER: Blocks =
    Blocks { threads: 256, keys: 128, few_keys: 64, key_turns: 3, turns: 3, sums: 192 << 20 };
pub(in crate::attention) const OTHERS: Blocks =
    Blocks { threads: 128, keys: 32, few_keys: 32, key_turns: 2, turns: 2, sums: 0 };

impl Blocks {
    pub(in crate::attention) fn of(gpu: &Gpu) -> Blocks {
        let blocks = if gpu.info().compute_capability.major == 9 { HOPPER } else { OTHERS };
        if gpu.takes_turns() { blocks } else { Blocks { sums: 0, ..blocks } }
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
pub(super) fn padded(shape: &AttentionShape) -> usize {
    if shape.head_dim <= 64 { 64 } else { 128 }
}

/// A block for so many heads and every `ROWS` rows of a sequence, with so many bytes of shared memory.
pub(super) fn launch(layout: &Layout, heads: usize, threads: u32, shared: usize) -> Launch {
    let grid = (heads as u32, layout.longest().div_ceil(ROWS) as u32, layout.sequences() as u32);
    Launch { grid, block: (threads, 1, 1), shared: shared as u32 }
}

/// How the forward pass is started.
pub(in crate::attention) fn launch_forward(
    blocks: Blocks,
    (shape, layout): (&AttentionShape, &Layout),
    dtype: DType,
) -> Launch {
    let shared = dtype.size() * padded(shape) * (ROWS + 4 * blocks.keys);
    launch(layout, shape.heads, blocks.threads, shared)
}

/// As [`super::super::cuda::forward`].
pub(in crate::attention) fn forward(
    (gpu, blocks): (&Arc<Gpu>, Blocks),
    [q, k, v]: [&Tensor; 3],
    (shape, layout, sinks): (&AttentionShape, &Layout, Option<&Tensor>),
    (y, lse): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let launch = launch_forward(blocks, (shape, layout), q.dtype());
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, cap } = *shape;
    let (segments, window, cap) = (layout.segments_on(gpu)?, window.unwrap_or(0), cap.unwrap_or(0.0));
    let y_stride = y.stride();
    let kernel = Forward { q, k, v, segments, y, y_stride, lse, heads, kv_heads, dim, window, scale, cap, sinks };
    // SAFETY: the caller checked the operands against the layout.
    unsafe { kernel.launch_from(source(shape), gpu, number(q.dtype()), launch) }
}

/// As [`super::super::cuda::backward`].
pub(in crate::attention) fn backward(
    (gpu, blocks): (&Arc<Gpu>, Blocks),
    saved: &Saved<'_>,
    of: (&AttentionShape, &Layout),
    grads: &mut [Option<Tensor>; 3],
) -> Result<()> {
    match grads {
        [Some(dq), Some(dk), Some(dv)] if one_pass::fit((gpu, blocks), of) => {
            one_pass::backward((gpu, blocks), saved, of, [dq, dk, dv])
        }
        grads => two_passes::backward((gpu, blocks), saved, of, grads),
    }
}

#[cfg(test)]
pub(in crate::attention) mod tests {
    use super::*;
    use halfbyte_cuda::{DeviceInfo, Rates, Version};
    use halfbyte_tensor::Device;
    use halfbyte_testkit::{
        cuda::{fresh_gpu, gpu},
        noise_in,
    };

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
            let of = |blocks| run(blocks, &gpu, (&shape, &layout));
            let [hopper, others] = [HOPPER, OTHERS].map(of);
            let alone = of(Blocks { turns: 1, ..OTHERS });
            assert_eq!(others, alone, "{shape:?}: how far copies run ahead changes no bit");
            assert_near(&hopper, &others, &shape);
            assert_near(&of(Blocks { sums: 0, ..HOPPER }), &others, &shape);
            let one_pass = of(Blocks { sums: HOPPER.sums, ..OTHERS });
            assert_near(&one_pass, &others, &shape);
            assert_eq!(one_pass, of(Blocks { sums: HOPPER.sums, ..OTHERS }), "{shape:?}: turns have an order");
            assert_eq!(hopper, of(HOPPER), "{shape:?}: turns have an order");
        }
    }

    /// By one pass as by two where several blocks of keys add to each row's gradient, all of them or those within a window.
    #[test]
    fn blocks_add_in_turn() {
        let Some(gpu) = gpu().filter(|it| it.info().name == "CUDA on the CPU") else { return };
        let layout = Layout::new(&[20, 390, 140]).unwrap();
        for (head_dim, window) in [(128, None), (64, None), (80, Some(200))] {
            let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.2, window, cap: None };
            let of = |blocks| run(blocks, &gpu, (&shape, &layout));
            let (two_passes, by_wgmma) = (of(OTHERS), of(HOPPER));
            assert_near(&by_wgmma, &two_passes, &shape);
            assert_eq!(by_wgmma, of(HOPPER), "{shape:?}");
            assert_near(&of(Blocks { sums: HOPPER.sums, ..OTHERS }), &two_passes, &shape);
        }
    }

    /// The sums of as many heads as go together are there at a time.
    #[test]
    fn sums_have_room() {
        let layout = Layout::new(&[1030, 40, 3]).unwrap();
        let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim: 64, scale: 0.2, window: None, cap: None };
        // 8 whole tiles of 128 rows, and one for each sequence; two query heads for one of keys and values.
        let a_head = 4 * (8 + 3) * 2 * 128 * 64;
        let [one, three] = [1, 3].map(|heads| {
            let compute_capability = Version { major: 9, minor: 0 };
            let info = DeviceInfo { ordinal: 0, name: "planned".into(), compute_capability, memory_bytes: 1 << 34 };
            let gpu = Gpu::dry_at(info, 227 << 10, Rates::ENDLESS);
            run(Blocks { sums: heads * a_head, ..HOPPER }, &gpu, (&shape, &layout));
            gpu.stats().peak
        });
        // A block of the pool may be somewhat larger than what was asked for.
        assert!(three > one + a_head, "{three} bytes with three heads, {one} with one");
    }

    /// Where memory has no room for the sums of all, one head of keys and values after the other gives the same bits, and two passes the rest.
    #[test]
    fn heads_whose_sums_have_no_room_follow_each_other() {
        let Some(gpu) = fresh_gpu().filter(|it| it.info().name == "CUDA on the CPU") else { return };
        let layout = Layout::new(&[150, 40]).unwrap();
        let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim: 64, scale: 0.2, window: None, cap: None };
        let of = |sums| run(Blocks { sums, ..HOPPER }, &gpu, (&shape, &layout));
        let launches = |sums| {
            let before = gpu.counters().launches;
            (of(sums), gpu.counters().launches - before)
        };
        // Two query heads of 128 rows of 64 channels a tile, and a tile more than whole ones for each sequence.
        let a_head = 4 * 3 * 2 * 128 * 64;
        let ((all, few), (in_turn, some), (two_passes, many)) =
            (launches(3 * a_head), launches(2 * a_head), launches(a_head - 1));
        assert_eq!(all, in_turn);
        assert_near(&all, &two_passes, &shape);
        assert_eq!(
            (some, many),
            (few + 1, few + 1),
            "a launch for two heads and one for one; queries, and keys with values"
        );
    }

    /// Whoever waits for its turn does so where the other block begins later, too.
    #[test]
    fn blocks_add_in_turn_whichever_begins_first() {
        let this = std::env::current_exe().unwrap();
        let test = "attention::tensor_cores::cuda::tests::blocks_add_in_turn";
        let out = std::process::Command::new(this).args(["--exact", test]).env("CUDA_ON_CPU_ORDER", "reverse").output();
        let out = out.unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
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
