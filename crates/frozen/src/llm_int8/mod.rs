//! The forward product of LLM.int8(): activations in 8 bits a row, but for the columns that hold outliers.
//!
//! As bitsandbytes computes it on a GPU: activations are rounded to f16; a column with a magnitude of at least
//! [`THRESHOLD`] anywhere is an outlier and is multiplied in floating point with the decoded weight; the others are quantised
//! a row at a time and multiplied as integers. Dettmers et al. 2022, <https://arxiv.org/abs/2208.07339>, section 3.
//!
//! Codes are at most 127, so bf16 holds them and their products exactly, and the bf16 kernels serve as integer ones: their
//! f32 sums are exact up to 2^24, which is a thousand products of the largest codes, and rounded like any f32 sum beyond. The
//! result is not rounded to f16, as the GPU's is; activations have a dtype of their own here.

mod cuda;

use crate::coded::CodedMatrix;
use halfbyte_matmul::{Compute, Dense, Operand, Out, Product, matmul};
use halfbyte_ops::frozen::Coded;
use halfbyte_tensor::{DType, Error, Place, Result, Tensor, bf16, f16};
use rayon::prelude::*;

/// Magnitudes from here on are outliers; what bitsandbytes and transformers use where nothing else is asked for.
pub const THRESHOLD: f32 = 6.0;

/// Activations in 8 bits.
struct Quantised {
    /// `(rows, cols)`, whole numbers in -127..=127, zero in outlier columns.
    codes: Vec<bf16>,
    /// The largest magnitude of each row that is no outlier.
    absmax: Vec<f32>,
    /// Columns that hold an outlier.
    outliers: Vec<usize>,
}

/// `x (rows, in_features) Wᵀ` in f32, where both lie.
pub(crate) fn product(w: &CodedMatrix, x: &Tensor) -> Result<Tensor> {
    match (w.place(), x.place()) {
        (Place::Host, Place::Host) => Ok(in_host_memory(w, x)),
        (Place::Gpu(_), Place::Gpu(gpu)) => cuda::product(gpu, w, x),
        (Place::Dry(_), Place::Dry(ledger)) => {
            let ((n, k), m) = (w.dims, x.rows());
            // Codes of the activations and their outliers, two bytes each.
            ledger.pass(2 * 2 * m * k);
            ledger.count((2 * m * n * k) as u64, (w.bytes() + x.bytes()) as u64);
            Ok(x.scratch_like(&[m, n], DType::F32))
        }
        _ => Err(Error::invalid("frozen_linear", "the weight lies in host memory, the activations on a GPU")),
    }
}

fn in_host_memory(w: &CodedMatrix, x: &Tensor) -> Tensor {
    let (m, (n, k)) = (x.rows(), w.dims);
    let mut x = x.to_f32_vec();
    x.par_iter_mut().with_min_len(1 << 14).for_each(|it| *it = f16::from_f32(*it).to_f32());
    let quantised = quantise(&x, k);
    let mut y = Tensor::scratch(&[m, n], DType::F32);
    let codes = Dense::new(m, k, &quantised.codes[..]);
    // An absmax of 127 decodes a code to itself.
    let unit = vec![127.0; n];
    let weight = halfbyte_matmul::Rows8::new(n, k, w.codes().data(), &unit);
    matmul(&Product::new(Operand::new(&codes), Operand::new(&weight).t(), Compute::Bf16), Out::F32(y.data_mut()));
    let rows = y.data_mut::<f32>().par_chunks_mut(n.max(1)).zip(&quantised.absmax);
    rows.with_min_len(8).for_each(|(y, a)| {
        for (y, b) in y.iter_mut().zip(w.absmax().data::<f32>()) {
            *y *= a * b * (1.0 / (127.0 * 127.0));
        }
    });
    if !quantised.outliers.is_empty() {
        add_outliers(w, &x, &quantised.outliers, &mut y);
    }
    y
}

fn quantise(x: &[f32], k: usize) -> Quantised {
    let mut is_outlier = vec![false; k];
    for row in x.chunks(k.max(1)) {
        for (flag, value) in is_outlier.iter_mut().zip(row) {
            // NaN goes the way that keeps it: a code could not hold it.
            *flag |= value.is_nan() || value.abs() >= THRESHOLD;
        }
    }
    let mut codes = vec![bf16::ZERO; x.len()];
    let mut absmax = vec![0.0f32; x.len() / k.max(1)];
    let rows = codes.par_chunks_mut(k.max(1)).zip(x.par_chunks(k.max(1))).zip(&mut absmax);
    rows.for_each(|((codes, row), absmax)| {
        // Of an outlier column, too, what is no outlier itself counts here, as in bitsandbytes.
        *absmax = row.iter().map(|it| it.abs()).filter(|it| *it < THRESHOLD).fold(0.0, f32::max);
        if *absmax == 0.0 {
            return;
        }
        let scale = 127.0 * (1.0 / *absmax);
        for ((code, value), outlier) in codes.iter_mut().zip(row).zip(&is_outlier) {
            if !outlier {
                *code = bf16::from_f32((value * scale).round_ties_even());
            }
        }
    });
    let outliers = (0..k).filter(|it| is_outlier[*it]).collect();
    Quantised { codes, absmax, outliers }
}

/// The columns that were left out: the activations' values and the decoded weight, rounded to f16, in floating point.
fn add_outliers(w: &CodedMatrix, x: &[f32], outliers: &[usize], y: &mut Tensor) {
    let ((n, k), few) = (w.dims, outliers.len());
    let m = x.len() / k;
    let mut picked = Vec::with_capacity(m * few);
    for row in x.chunks(k) {
        picked.extend(outliers.iter().map(|it| row[*it]));
    }
    let mut columns = vec![0.0f32; n * few];
    columns.par_chunks_mut(few).enumerate().with_min_len(64).for_each(|(row, out)| {
        let (codes, absmax) = (&w.codes().data::<u8>()[row * k..][..k], w.absmax().data::<f32>()[row]);
        for (out, column) in out.iter_mut().zip(outliers) {
            *out = f16::from_f32(f32::from(codes[*column].cast_signed()) * absmax * (1.0 / 127.0)).to_f32();
        }
    });
    let (picked, columns) = (Dense::new(m, few, &picked[..]), Dense::new(n, few, &columns[..]));
    let product = Product::new(Operand::new(&picked), Operand::new(&columns).t(), Compute::F32);
    matmul(&Product { accumulate: true, ..product }, Out::F32(y.data_mut()));
}
