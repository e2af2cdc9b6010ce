use super::{AttentionShape, Saved};
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{DType, Error, Result, Tensor, cuda};
use std::sync::Arc;

const SOURCE: Source = Source { name: "attention", text: include_str!("kernel.cu") };
/// The three kernels of `SOURCE` once more, with tensor cores.
const TENSOR_CORES: Source = Source { name: "tensor_cores", text: include_str!("tensor_cores/kernel.cu") };
/// Rows that a block takes, rows of a tile, threads of a block: as in the kernels.
const ROWS: usize = 16;
const TENSOR_CORE_ROWS: usize = 64;
const TILE: usize = 32;
const THREADS: u32 = 128;
/// The channels that a lane sums are in registers, eight at most.
const MAX_HEAD_DIM: usize = 256;

/// Whether tensor cores can do it: 16-bit numbers and whole tiles of channels. One query would leave them idle.
fn on_tensor_cores(shape: &AttentionShape, layout: &Layout, dtype: DType) -> bool {
    dtype != DType::F32 && shape.head_dim.is_multiple_of(16) && shape.head_dim <= 128 && layout.longest() >= TILE
}

/// The file of kernels, and how one is started that takes so many heads and keeps so many tensors of its block's rows.
fn launch(
    (shape, layout): (&AttentionShape, &Layout),
    dtype: DType,
    (heads, rows_kept): (usize, usize),
) -> Result<(&'static Source, Launch)> {
    let grid = |rows: usize| (layout.longest().div_ceil(rows) as u32, heads as u32, layout.sequences() as u32);
    if on_tensor_cores(shape, layout, dtype) {
        let shared = dtype.size() * (rows_kept * TENSOR_CORE_ROWS + 2 * TILE) * (shape.head_dim + 8);
        let launch = Launch { grid: grid(TENSOR_CORE_ROWS), block: (THREADS, 1, 1), shared: shared as u32 };
        return Ok((&TENSOR_CORES, launch));
    }
    if shape.head_dim > MAX_HEAD_DIM {
        let message = format!("heads of {} channels; at most {MAX_HEAD_DIM} fit on a GPU", shape.head_dim);
        return Err(Error::invalid("attention", message));
    }
    let shared = 4 * (2 * TILE * (shape.head_dim + 1) + rows_kept * ROWS * shape.head_dim);
    Ok((&SOURCE, Launch { grid: grid(ROWS), block: (THREADS, 1, 1), shared: shared as u32 }))
}

fn with_shape<'a>(call: cuda::Call<'a>, shape: &AttentionShape) -> cuda::Call<'a> {
    let call = call.int(shape.heads).int(shape.kv_heads).int(shape.head_dim);
    call.int(shape.window.unwrap_or(0)).float(shape.scale)
}

/// Writes `y`, and the logarithm of every row's sum.
pub(super) fn forward(
    gpu: &Arc<Gpu>,
    [q, k, v]: [&Tensor; 3],
    (shape, layout): (&AttentionShape, &Layout),
    (y, lse): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let (source, launch) = launch((shape, layout), q.dtype(), (shape.heads, 1))?;
    let call = cuda::Call::new(gpu, source, q.dtype()).read(q).read(k).read(v).read(layout.segments_on(gpu)?);
    let call = with_shape(call.write(y).write(lse), shape);
    // SAFETY: the caller checked the operands against the layout.
    unsafe { call.run("forward", launch) }
}

/// Writes the gradients of queries, keys and values that are wanted.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    saved: &Saved<'_>,
    (shape, layout): (&AttentionShape, &Layout),
    grads: &mut [Option<Tensor>; 3],
) -> Result<()> {
    let ([q, k, v], segments) = (saved.inputs, layout.segments_on(gpu)?);
    let mut d = q.scratch_like(saved.lse.shape(), DType::F32);
    let call = cuda::Call::new(gpu, &SOURCE, q.dtype()).read(saved.dy).read(saved.y).read(segments).write(&mut d);
    let grid = (layout.longest().div_ceil(8) as u32, shape.heads as u32, layout.sequences() as u32);
    // SAFETY: a warp a row and head of every sequence.
    unsafe {
        call.int(shape.heads).int(shape.head_dim).run("products", Launch { grid, block: (256, 1, 1), shared: 0 })
    }?;
    let (source, launch_queries) = launch((shape, layout), q.dtype(), (shape.heads, 2))?;
    let (_, launch_keys) = launch((shape, layout), q.dtype(), (shape.kv_heads, 2))?;
    let call = || {
        let call = cuda::Call::new(gpu, source, q.dtype()).read(q).read(k).read(v).read(saved.dy).read(saved.lse);
        call.read(&d).read(segments)
    };
    let [dq, dk, dv] = grads;
    if let Some(dq) = dq {
        // SAFETY: gradients have the shapes of what they belong to.
        unsafe { with_shape(call().write(dq), shape).run("query_gradient", launch_queries) }?;
    }
    if dk.is_some() || dv.is_some() {
        let call = with_shape(call().write_or_null(dk.as_mut()).write_or_null(dv.as_mut()), shape);
        // SAFETY: as above; the kernel leaves out what leads nowhere.
        unsafe { call.run("key_value_gradient", launch_keys) }?;
    }
    Ok(())
}
