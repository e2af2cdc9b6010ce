//! Launches of the kernels for tensor cores.

use super::super::{AttentionShape, Saved};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, InRows, Launch, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "tensor_cores", "../shape.cuh" "products.cuh" "kernel.cu", over Tensor;
    forward as Forward {
        q: *const T, k: *const T, v: *const T, segments: *const u32, y: InRows<*mut T>, y_stride: i32, lse: *mut f32,
        heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, sinks: Option<*const f32>,
    }
    along as Along { dy: *const T, y: InRows<*const T>, y_stride: i32, segments: *const u32, d: *mut f32, heads: i32, dim: i32 }
    query_gradient as QueryGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dq: InRows<*mut T>, dq_stride: i32, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32,
    }
    key_value_gradient as KeyValueGradient {
        q: *const T, k: *const T, v: *const T, dy: *const T, lse: *const f32, d: *const f32, segments: *const u32,
        dk: Option<InRows<*mut T>>, dk_stride: i32, dv: Option<InRows<*mut T>>, dv_stride: i32, heads: i32, kv_heads: i32, dim: i32, window: i32, scale: f32, turns: i32,
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
/// Shorter rows than this would leave most of a block idle.
const SHORTEST: usize = 32;

/// Whether tensor cores can do it: 16-bit numbers, whole pieces of channels, a scale that keeps the order of the scores, and no cap.
pub(in crate::attention) fn fit(shape: &AttentionShape, layout: &Layout, dtype: DType) -> bool {
    let head = shape.head_dim.is_multiple_of(16) && shape.head_dim <= 128;
    dtype != DType::F32 && head && shape.scale > 0.0 && shape.cap.is_none() && layout.longest() >= SHORTEST
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
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, .. } = *shape;
    let (segments, window) = (layout.segments_on(gpu)?, window.unwrap_or(0));
    let y_stride = y.stride();
    let kernel = Forward { q, k, v, segments, y, y_stride, lse, heads, kv_heads, dim, window, scale, sinks };
    // SAFETY: the caller checked the operands against the layout.
    unsafe { kernel.launch(gpu, number(q.dtype()), launch(layout, heads, blocks.threads, shared)) }
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
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, .. } = *shape;
    let (dy, lse, window) = (saved.dy, saved.lse, window.unwrap_or(0));
    let kernel = Along { dy, y: saved.y, y_stride: saved.y.stride(), segments, d: &mut d, heads, dim };
    // SAFETY: a block for every `ROWS` rows and head of every sequence.
    unsafe { kernel.launch(gpu, element, launch(layout, heads, blocks.threads, 0)) }?;
    let d = &d;
    if let Some(dq) = dq {
        let shared = row * (2 * ROWS + (blocks.key_turns + 2) * blocks.few_keys);
        let dq_stride = dq.stride();
        let kernel =
            QueryGradient { q, k, v, dy, lse, d, segments, dq, dq_stride, heads, kv_heads, dim, window, scale };
        // SAFETY: gradients have the shapes of what they belong to.
        unsafe { kernel.launch(gpu, element, launch(layout, heads, blocks.threads, shared)) }?;
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
            turns,
        };
        // SAFETY: as above; the kernel leaves out what leads nowhere.
        unsafe { kernel.launch(gpu, element, launch(layout, kv_heads, KEY_THREADS, shared(turns))) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_tensor::Device;
    use halfbyte_testkit::{cuda::gpu, noise_in};

    /// `y`, `lse` and the gradients, as f32.
    fn run(blocks: Blocks, gpu: &Arc<Gpu>, (shape, layout): (&AttentionShape, &Layout)) -> Vec<Vec<f32>> {
        let of = |heads: usize, seed| {
            let it = noise_in(&[layout.tokens(), heads * shape.head_dim], DType::Bf16, seed, -1.0, 1.0);
            it.to_device(&Device::Cuda(gpu.clone())).unwrap()
        };
        let [q, k, v, dy] =
            [(shape.heads, 1), (shape.kv_heads, 2), (shape.kv_heads, 3), (shape.heads, 4)].map(|(h, s)| of(h, s));
        let (mut y, mut lse) =
            (q.scratch_like(q.shape(), q.dtype()), q.scratch_like(&[shape.heads * q.rows()], DType::F32));
        forward((gpu, blocks), [&q, &k, &v], (shape, layout, None), (&mut y, &mut lse)).unwrap();
        let mut grads = [&q, &k, &v].map(|it| Some(it.scratch_like(it.shape(), it.dtype())));
        let saved = Saved { inputs: [&q, &k, &v], y: &y, dy: &dy, lse: &lse };
        backward((gpu, blocks), &saved, (shape, layout), &mut grads).unwrap();
        let all = [y, lse].into_iter().chain(grads.into_iter().flatten());
        all.map(|it| it.to_device(&Device::Cpu).unwrap().to_f32_vec()).collect()
    }

    #[test]
    fn the_blocks_of_every_architecture_agree() {
        // A real device has the kernels of one.
        let Some(gpu) = gpu().filter(|it| it.info().name == "CUDA on the CPU") else { return };
        let layout = Layout::new(&[140, 31]).unwrap();
        for (head_dim, window) in [(128, None), (64, Some(70))] {
            let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.2, window, cap: None };
            let [hopper, others] = [HOPPER, OTHERS].map(|it| run(it, &gpu, (&shape, &layout)));
            let alone = run(Blocks { turns: 1, ..OTHERS }, &gpu, (&shape, &layout));
            assert_eq!(others, alone, "{shape:?}: how far copies run ahead changes no bit");
            for (i, (a, b)) in hopper.iter().zip(&others).enumerate() {
                let largest = b.iter().fold(0.0f32, |most, it| most.max(it.abs()));
                // Sums in another order, each rounded to bf16 in the end.
                let near = a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2.0f32.powi(-7) * largest);
                assert!(near, "result {i} of {shape:?}");
            }
        }
    }
}
