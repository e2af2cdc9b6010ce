use super::{Block, Scales, Stored};
use halfbyte_cuda::{Gpu, Launch, T, kernels};
use halfbyte_ops::{
    frozen::FourBit,
    gpu_product::{Window, sheet},
};
use halfbyte_tensor::{
    DType, Place, Result, Tensor,
    cuda::{number, upload_f32},
};
use std::sync::Arc;

kernels! {
    const SOURCE = "coded", "kernel.cu", over Tensor;
    decode as Decode {
        codes: *const u8, tables: *const f32, absmax: Option<*const f32>, scale_codes: Option<*const u8>, nested: Option<*const f32>,
        offset: f32, shift: i32, bits: i32, unit: f32, out: *mut T, start: usize, stride: i32, rows: i32, cols: i32,
    }
    encode4 as Encode4 { x: *const T, rule: *const f32, codes: *mut u8, absmax: *mut f32, nibbles: usize, size: i32, n: usize }
}

/// Elements of a row that a thread decodes at once.
const TOGETHER: usize = 8;
/// Rows of which it does so together.
const AT_ONCE: usize = 4;
/// Writes the values of the codes, times their scales if there are any, into a window of the matrix' dimensions.
pub(super) fn decode(matrix: &Stored, scales: Option<&Scales>, mut into: Window<'_>) -> Result<()> {
    let (rows, cols) = matrix.dims;
    assert_eq!(into.dims(), matrix.dims, "a matrix is decoded into a window of its size");
    let (start, stride, dtype) = (into.start(), into.stride(), into.tensor().dtype());
    let gpu = device(matrix);
    if rows * cols == 0 {
        return Ok(());
    }
    let unit = if scales.is_some() { matrix.code.unit } else { 1.0 };
    let (bits, out) = (matrix.code.bits, into.tensor());
    let Parts { codes, tables, absmax, scale_codes, nested, offset, shift } = Parts::of(matrix, scales);
    let read = [Some(codes), Some(tables), absmax, scale_codes, nested].into_iter().flatten().map(Tensor::bytes);
    gpu.next_moves(read.sum::<usize>() + rows * cols * dtype.size());
    let kernel = Decode {
        codes,
        tables,
        absmax,
        scale_codes,
        nested,
        offset,
        shift,
        bits,
        unit,
        out,
        start,
        stride,
        rows,
        cols,
    };
    // SAFETY: the codes fill the matrix, with a scale for every block of them, and the window lies in its tensor.
    unsafe { kernel.launch(gpu, number(dtype), sheet(rows.div_ceil(AT_ONCE), cols.div_ceil(TOGETHER))) }
}

/// Four bits and a scale for blocks of `size` elements of a tensor on a GPU: by thresholds, the nibbles between them, and what takes the
/// place of NaN.
pub(super) fn encode4(
    x: &Tensor,
    (thresholds, nibbles, nan_as): (&[f32; 15], &[u8; 16], f32),
    size: usize,
) -> Result<(Tensor, Tensor)> {
    let x = &x.dense();
    let Place::Gpu(gpu) = x.place() else { unreachable!("asked of a tensor on a GPU") };
    let n = x.len();
    let mut codes = x.scratch_like(&[n.div_ceil(2)], DType::U8);
    let mut absmax = x.scratch_like(&[n.div_ceil(size)], DType::F32);
    if n > 0 {
        let rule = &upload_f32(gpu, &[16], &[&thresholds[..], &[nan_as]].concat())?;
        let nibbles = nibbles.iter().rev().fold(0, |all, it| all << 4 | usize::from(*it));
        let (lanes, element) = (absmax.len() * 32, number(x.dtype()));
        let kernel = Encode4 { x, rule, codes: &mut codes, absmax: &mut absmax, nibbles, size, n };
        // SAFETY: a warp for each block; codes and scales have room for all elements and blocks.
        unsafe { kernel.launch(gpu, element, Launch::elements(lanes)) }?;
    }
    Ok((codes, absmax))
}

/// The parts of a matrix of 4-bit codes, for products of few rows.
pub(super) fn four_bit(matrix: &Stored) -> FourBit<'_> {
    let Parts { codes, tables, absmax, scale_codes, nested, offset, shift } = Parts::of(matrix, Some(&matrix.scales));
    FourBit { dims: matrix.dims, codes, tables, absmax, scale_codes, nested, offset, shift }
}

/// The arguments that describe a matrix: codes, tables, scales in either form, and how many elements share one.
struct Parts<'a> {
    codes: &'a Tensor,
    tables: &'a Tensor,
    absmax: Option<&'a Tensor>,
    scale_codes: Option<&'a Tensor>,
    nested: Option<&'a Tensor>,
    offset: f32,
    shift: usize,
}

impl<'a> Parts<'a> {
    fn of(matrix: &'a Stored, scales: Option<&'a Scales>) -> Parts<'a> {
        let tables = matrix.tables.as_ref().expect("a matrix away from host memory has its tables there");
        let (absmax, scale_codes, nested, offset) = match scales {
            None => (None, None, None, 0.0),
            Some(Scales::Plain(absmax)) => (Some(absmax), None, None, 0.0),
            Some(Scales::Double { codes, nested_absmax, offset }) => (None, Some(codes), Some(nested_absmax), *offset),
        };
        let shift = match matrix.block {
            Block::Elements(size) => size.trailing_zeros() as usize,
            Block::Row => 0,
        };
        Parts { codes: &matrix.codes, tables, absmax, scale_codes, nested, offset, shift }
    }
}

/// The GPU that runs a kernel on the matrix.
fn device(matrix: &Stored) -> &Arc<Gpu> {
    match matrix.codes.place() {
        Place::Gpu(gpu) => gpu,
        Place::Host | Place::Dry(_) => unreachable!("kernels run on what lies on a GPU"),
    }
}
