use super::{Block, CodedMatrix, Scales};
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_ops::gpu_product::{Window, sheet};
use halfbyte_tensor::{Place, Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "coded", text: include_str!("kernel.cu") };
/// Elements that a thread decodes.
const TOGETHER: usize = 8;
/// Rows of the weight that a block of `multiply_few` multiplies, a warp each.
const ROWS: usize = 8;

/// Writes the values of the codes, times their scales if there are any, into a window of the matrix' dimensions.
pub(super) fn decode(matrix: &CodedMatrix, scales: Option<&Scales>, mut into: Window<'_>) -> Result<()> {
    let (rows, cols) = matrix.dims;
    assert_eq!(into.dims(), matrix.dims, "a matrix is decoded into a window of its size");
    let (start, stride, dtype) = (into.start(), into.stride(), into.tensor().dtype());
    let gpu = device(matrix);
    if rows * cols == 0 {
        return Ok(());
    }
    let unit = if scales.is_some() { matrix.code.unit } else { 1.0 };
    let call = described(Call::new(gpu, &SOURCE, dtype), matrix, scales).int(matrix.code.bits).float(unit);
    let call = call.write(into.tensor()).long(start as u64).int(stride).int(rows).int(cols);
    // SAFETY: the codes fill the matrix, with a scale for every block of them, and the window lies in its tensor.
    unsafe { call.run("decode", sheet(rows, cols.div_ceil(TOGETHER))) }
}

/// `x (at most 8 rows, in_features) Wᵀ` in the dtype of `x`, for 4-bit codes.
pub(super) fn multiply_few(matrix: &CodedMatrix, x: &Tensor) -> Result<Tensor> {
    let ((n, k), m) = (matrix.dims, x.rows());
    let mut y = x.scratch_like(&[m, n], x.dtype());
    let gpu = device(matrix);
    if m * n == 0 {
        return Ok(y);
    }
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x);
    let call = described(call, matrix, Some(&matrix.scales)).write(&mut y).int(m).int(n).int(k);
    // SAFETY: the codes fill the matrix, with a scale for every block of them; a warp a row of them, all of `x` for each.
    unsafe { call.run("multiply_few", Launch::rows(n.div_ceil(ROWS), 32 * ROWS as u32)) }?;
    gpu.count_operations((2 * m * n * k) as u64);
    Ok(y)
}

/// The arguments that describe a matrix: codes, tables, scales in either form, and how many elements share one.
fn described<'a>(call: Call<'a>, matrix: &CodedMatrix, scales: Option<&Scales>) -> Call<'a> {
    let tables = matrix.tables.as_ref().expect("a matrix away from host memory has its tables there");
    let call = call.read(&matrix.codes).read(tables);
    let (absmax, codes, nested, offset) = match scales {
        None => (None, None, None, 0.0),
        Some(Scales::Plain(absmax)) => (Some(absmax), None, None, 0.0),
        Some(Scales::Double { codes, nested_absmax, offset }) => (None, Some(codes), Some(nested_absmax), *offset),
    };
    let shift = match matrix.block {
        Block::Elements(size) => size.trailing_zeros() as usize,
        Block::Row => 0,
    };
    call.read_or_null(absmax).read_or_null(codes).read_or_null(nested).float(offset).int(shift)
}

/// The GPU that runs a kernel on the matrix.
fn device(matrix: &CodedMatrix) -> &Arc<Gpu> {
    match matrix.codes.place() {
        Place::Gpu(gpu) => gpu,
        Place::Host | Place::Dry(_) => unreachable!("kernels run on what lies on a GPU"),
    }
}
