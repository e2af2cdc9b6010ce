use super::AttentionShape;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{DType, Error, Result, Tensor, cuda};
use std::sync::Arc;

const SOURCE: Source = Source { name: "attention", text: include_str!("kernel.cu") };
/// The same three kernels with tensor cores.
const TENSOR_CORES: Source = Source { name: "tensor_cores", text: include_str!("tensor_cores/kernel.cu") };
/// Rows that a block takes, rows of a tile, threads of a block: as in the kernels.
const ROWS: usize = 16;
const TENSOR_CORE_ROWS: usize = 64;
const TILE: usize = 32;
const THREADS: u32 = 128;
/// The channels that a lane sums are in registers, eight at most.
const MAX_HEAD_DIM: usize = 256;

/// Where keys and values lie, beyond the shape.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Rows of a sequence's keys and values.
    pub(super) kv_time: usize,
    /// Position of the first query.
    pub(super) start: usize,
}

/// Whether tensor cores can do it: 16-bit numbers and whole tiles of channels. One query would leave them idle.
fn on_tensor_cores(shape: &AttentionShape, dtype: DType) -> bool {
    dtype != DType::F32 && shape.head_dim.is_multiple_of(16) && shape.head_dim <= 128 && shape.time >= TILE
}

/// The file of kernels, and how one is started that keeps so many tensors of its block's rows.
fn launch(shape: &AttentionShape, dtype: DType, heads: usize, rows_kept: usize) -> Result<(&'static Source, Launch)> {
    if on_tensor_cores(shape, dtype) {
        let shared = dtype.size() * (rows_kept * TENSOR_CORE_ROWS + 2 * TILE) * (shape.head_dim + 8);
        let grid = (shape.time.div_ceil(TENSOR_CORE_ROWS) as u32, heads as u32, shape.batch as u32);
        return Ok((&TENSOR_CORES, Launch { grid, block: (THREADS, 1, 1), shared: shared as u32 }));
    }
    if shape.head_dim > MAX_HEAD_DIM {
        let message = format!("heads of {} channels; at most {MAX_HEAD_DIM} fit on a GPU", shape.head_dim);
        return Err(Error::invalid("attention", message));
    }
    let shared = 4 * (2 * TILE * (shape.head_dim + 1) + rows_kept * ROWS * shape.head_dim);
    let grid = (shape.time.div_ceil(ROWS) as u32, heads as u32, shape.batch as u32);
    Ok((&SOURCE, Launch { grid, block: (THREADS, 1, 1), shared: shared as u32 }))
}

fn with_shape<'a>(call: cuda::Call<'a>, shape: &AttentionShape, place: Place) -> cuda::Call<'a> {
    let call = call.int(shape.heads).int(shape.kv_heads).int(shape.head_dim).int(shape.time);
    call.int(place.kv_time).int(place.start).int(shape.window.unwrap_or(0)).float(shape.scale)
}

fn upload_lengths(gpu: &Arc<Gpu>, lengths: &[usize]) -> Result<Tensor> {
    cuda::upload_u32(gpu, &lengths.iter().map(|it| *it as u32).collect::<Vec<_>>())
}

/// `y`, and the logarithm of every row's sum, `(batch * heads, time)`.
pub(super) fn forward(
    [q, k, v]: [&Tensor; 3],
    shape: &AttentionShape,
    place: Place,
    lengths: Option<&[usize]>,
) -> Result<(Tensor, Tensor)> {
    let mut y = q.scratch_like(q.shape(), q.dtype());
    let mut lse = q.scratch_like(&[shape.batch * shape.heads, shape.time], DType::F32);
    let Some(gpu) = q.gpu() else { return Ok((y, lse)) };
    let lengths = lengths.map(|it| upload_lengths(gpu, it)).transpose()?;
    let (source, launch) = launch(shape, q.dtype(), shape.heads, 1)?;
    let call = cuda::Call::new(gpu, source, q.dtype()).read(q).read(k).read(v).read_or_null(lengths.as_ref());
    let call = with_shape(call.write(&mut y).write(&mut lse), shape, place);
    // SAFETY: the caller checked operands and lengths against the shape.
    unsafe { call.run("forward", launch) }?;
    Ok((y, lse))
}

/// What the forward pass saved.
pub(super) struct Saved<'a> {
    pub(super) inputs: [&'a Tensor; 3],
    pub(super) y: &'a Tensor,
    pub(super) lse: &'a Tensor,
    pub(super) lengths: &'a [usize],
}

/// The gradients of queries, keys and values.
pub(super) fn backward(saved: &Saved<'_>, dy: &Tensor, shape: &AttentionShape) -> Result<[Tensor; 3]> {
    let [q, k, v] = saved.inputs;
    let mut grads = saved.inputs.map(|it| it.scratch_like(it.shape(), it.dtype()));
    let Some(gpu) = q.gpu() else { return Ok(grads) };
    let place = Place { kv_time: shape.time, start: 0 };
    let lengths = upload_lengths(gpu, saved.lengths)?;
    let mut d = q.scratch_like(saved.lse.shape(), DType::F32);
    let n = d.len();
    let call = cuda::Call::new(gpu, &SOURCE, q.dtype()).read(dy).read(saved.y).write(&mut d);
    let call = call.int(shape.heads).int(shape.head_dim).int(shape.time).long(n as u64);
    // SAFETY: a warp a row and head.
    unsafe { call.run("products", Launch { grid: (n.div_ceil(8) as u32, 1, 1), block: (256, 1, 1), shared: 0 }) }?;
    let (source, launch_queries) = launch(shape, q.dtype(), shape.heads, 2)?;
    let (_, launch_keys) = launch(shape, q.dtype(), shape.kv_heads, 2)?;
    let call = || {
        let call = cuda::Call::new(gpu, source, q.dtype()).read(q).read(k).read(v).read(dy).read(saved.lse);
        call.read(&d).read(&lengths)
    };
    let [dq, dk, dv] = &mut grads;
    let queries = with_shape(call().write(dq), shape, place);
    // SAFETY: gradients have the shapes of what they belong to.
    unsafe { queries.run("query_gradient", launch_queries) }?;
    let keys = with_shape(call().write(dk).write(dv), shape, place);
    // SAFETY: as above.
    unsafe { keys.run("key_value_gradient", launch_keys) }?;
    Ok(grads)
}
