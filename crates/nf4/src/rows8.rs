//! Row-wise INT8, as LLM.int8() stores weights: one absmax a row, 127 levels on either side.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::element::{Element, PIECE};
use crate::error::{Error, check_len};
use crate::kernels::{Kernels, selected};

/// A `(rows, cols)` matrix in 8 bits: `value = code * absmax[row] / 127`. The fields are for reading; build one with
/// [`quantize_rows8`] or [`Rows8::from_parts`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rows8 {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row-major, `rows * cols`; bitsandbytes calls them `CB`.
    pub codes: Vec<i8>,
    /// One for each row; bitsandbytes calls them `SCB`.
    pub absmax: Vec<f32>,
}

/// Quantises the rows of a row-major `(rows, cols)` matrix.
///
/// As in bitsandbytes the values are first rounded to `f16`, whatever `T` is (what does not fit becomes infinite); then
/// `code = round_ties_even(x * (127 * (1 / absmax)))`. A row of zeros stores zeros and absmax 0. NaN is ignored by the absmax
/// and stored as 0; a row with an infinity stores zeros and an infinite absmax, so it decodes to NaN.
///
/// # Errors
/// [`Error::Length`] if `x.len() != rows * cols`, [`Error::TooLarge`] if that product overflows.
pub fn quantize_rows8<T: Element>(x: &[T], rows: usize, cols: usize) -> Result<Rows8, Error> {
    let op = "quantize_rows8";
    check_len(op, "x", area(op, rows, cols)?, x.len())?;
    let mut codes = vec![0; x.len()];
    let mut absmax = vec![0.0; rows];
    if cols > 0 {
        let k = selected();
        let tasks = x.par_chunks(cols).zip(codes.par_chunks_mut(cols)).zip(&mut absmax);
        tasks.with_min_len(rows_per_task(cols)).for_each_init(
            || (vec![0.0; cols], vec![f16::ZERO; cols]),
            |(values, halves), ((x, codes), absmax)| *absmax = encode_row(k, x, codes, (values, halves)),
        );
    }
    Ok(Rows8 { rows, cols, codes, absmax })
}

fn encode_row<T: Element>(k: &Kernels, x: &[T], codes: &mut [i8], buffers: (&mut [f32], &mut [f16])) -> f32 {
    let (values, halves) = buffers;
    // f16 input comes back unchanged from this.
    halves.convert_from_f32_slice(T::widen(k, x, values));
    halves.convert_to_f32_slice(values);
    let absmax = k.absmax(values);
    if absmax > 0.0 {
        // Two roundings, as in bitsandbytes: on a CPU it multiplies by the reciprocal, and so does the fast division of a GPU.
        k.encode_i8(values, 127.0 * (1.0 / absmax), codes);
    }
    absmax
}

impl Rows8 {
    /// Puts together what was stored.
    ///
    /// # Errors
    /// [`Error::Length`] naming the part that does not fit the shape, [`Error::TooLarge`] if the shape overflows.
    pub fn from_parts(rows: usize, cols: usize, codes: Vec<i8>, absmax: Vec<f32>) -> Result<Rows8, Error> {
        let op = "Rows8::from_parts";
        check_len(op, "codes", area(op, rows, cols)?, codes.len())?;
        check_len(op, "absmax", rows, absmax.len())?;
        Ok(Rows8 { rows, cols, codes, absmax })
    }

    /// Decodes everything, on all of rayon's threads: `code * absmax * (1 / 127)` in `f32`, rounded once to `T`.
    ///
    /// # Panics
    /// If `out.len() != rows * cols`.
    pub fn dequantize<T: Element>(&self, out: &mut [T]) {
        assert_eq!(out.len(), self.codes.len(), "dequantize: the output must have the matrix's size");
        if self.cols > 0 {
            let rows = out.par_chunks_mut(self.cols).enumerate().with_min_len(rows_per_task(self.cols));
            rows.for_each(|(row, out)| self.dequantize_row_range(row, 0, out));
        }
    }

    /// Decodes elements `start..start + out.len()` of one row, on this thread.
    ///
    /// # Panics
    /// If the range reaches beyond the row, or the row beyond the matrix.
    pub fn dequantize_row_range<T: Element>(&self, row: usize, start: usize, out: &mut [T]) {
        assert!(row < self.rows, "dequantize_row_range: row {row} of {}", self.rows);
        let end = start.checked_add(out.len()).filter(|&end| end <= self.cols);
        let end = end.expect("dequantize_row_range: the range must lie within the row");
        let k = selected();
        let codes = &self.codes[row * self.cols..][start..end];
        let mut buffer = [0.0; PIECE / 4];
        for (codes, out) in codes.chunks(buffer.len()).zip(out.chunks_mut(PIECE / 4)) {
            let values = &mut buffer[..codes.len()];
            k.decode_i8(codes, self.absmax[row], values);
            T::narrow(k, values, out);
        }
    }

    /// Bytes that codes and scales take.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(&self.absmax[..])
    }

    /// `8 * bytes / elements`, a little above 8. 0 for an empty matrix.
    pub fn bits_per_parameter(&self) -> f64 {
        if self.codes.is_empty() { 0.0 } else { 8.0 * self.bytes() as f64 / self.codes.len() as f64 }
    }
}

fn area(op: &'static str, rows: usize, cols: usize) -> Result<usize, Error> {
    rows.checked_mul(cols).ok_or(Error::TooLarge { op, rows, cols })
}

/// Rows worth a task of their own; rows are independent, so this decides nothing but speed.
fn rows_per_task(cols: usize) -> usize {
    (1 << 16) / cols.min(1 << 16)
}
