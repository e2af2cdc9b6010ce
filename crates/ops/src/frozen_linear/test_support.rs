//! Frozen matrices and f64 oracles for the tests of the linear ops and the head.

use crate::FrozenMatrix;
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_matmul::{Lut4, Scales4, Source};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::noise_vec;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// A dense frozen weight that counts how often a product asked for it.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) weight: Tensor,
    pub(crate) reads: AtomicUsize,
}

impl Plain {
    pub(crate) fn new(weight: Tensor) -> Plain {
        Plain { weight, reads: AtomicUsize::new(0) }
    }

    /// One that lives as long as any tape, for gradient checks.
    pub(crate) fn leaked(weight: Tensor) -> &'static Plain {
        Box::leak(Box::new(Plain::new(weight)))
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl FrozenMatrix for Plain {
    fn dims(&self) -> (usize, usize) {
        (self.weight.shape()[0], self.weight.shape()[1])
    }
    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        crate::product::source(&self.weight)
    }
    fn bytes(&self) -> usize {
        self.weight.bytes()
    }
    fn format(&self) -> String {
        self.weight.dtype().to_string()
    }
}

/// A weight in blocks of 4-bit codes.
#[derive(Debug)]
pub(crate) struct FourBit {
    dims: (usize, usize),
    packed: Vec<u8>,
    scales: Vec<f32>,
}

const TABLE: [f32; 16] = [-1.0, -0.7, -0.55, -0.4, -0.3, -0.2, -0.1, 0.0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.6, 0.75, 1.0];
const BLOCK: usize = 64;

impl FourBit {
    pub(crate) fn random(rows: usize, cols: usize, seed: u64) -> FourBit {
        let len = rows * cols;
        let packed = noise_vec(len.div_ceil(2), seed).into_iter().map(|v| (v.to_bits() >> 9) as u8);
        let scales = noise_vec(len.div_ceil(BLOCK), seed + 1).iter().map(|v| 0.5 + v.abs()).collect();
        FourBit { dims: (rows, cols), packed: packed.collect(), scales }
    }

    /// The decoded values.
    pub(crate) fn dense(&self) -> Tensor {
        let mut w = vec![0.0; self.dims.0 * self.dims.1];
        for (row, values) in w.chunks_mut(self.dims.1).enumerate() {
            self.source().read_f32(row, 0, values);
        }
        Tensor::from_vec(&[self.dims.0, self.dims.1], w)
    }
}

impl FrozenMatrix for FourBit {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }
    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        Box::new(Lut4::new(self.dims, &self.packed, &TABLE, Scales4::Plain(&self.scales), BLOCK))
    }
    fn bytes(&self) -> usize {
        self.packed.len() + 4 * self.scales.len()
    }
    fn format(&self) -> String {
        "4-bit, for tests".into()
    }
}

/// A weight whose forward is its own: it gives `7` everywhere.
#[derive(Debug)]
pub(crate) struct Sevens(pub(crate) Plain);

impl FrozenMatrix for Sevens {
    fn multiplies_itself(&self) -> bool {
        true
    }
    fn dims(&self) -> (usize, usize) {
        self.0.dims()
    }
    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        self.0.source()
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
    fn format(&self) -> String {
        self.0.format()
    }
    fn forward(&self, x: &Tensor) -> Option<Result<Tensor>> {
        let (rows, n) = (x.rows(), self.dims().0);
        Some(Ok(Tensor::from_vec(&[rows, n], vec![7.0f32; rows * n])))
    }
}

/// A scalar whose gradient with respect to `y` is `dy`.
pub(crate) fn with_gradient(tape: &Tape<'_>, y: &Var, dy: &Tensor) -> Var {
    let dy = dy.clone();
    tape.record("with_gradient", [y], Tensor::scalar(0.0), move |_, _| Ok([Some(dy)]))
}

/// The elements after rounding to `dtype`, as f64.
pub(crate) fn rounded(t: &Tensor, dtype: DType) -> Vec<f64> {
    t.to_dtype(dtype).to_f32_vec().into_iter().map(f64::from).collect()
}

/// How operands enter a product over activations of `dtype`.
pub(crate) fn as_operand(t: &Tensor, dtype: DType) -> Vec<f64> {
    rounded(t, if dtype == DType::Bf16 { DType::Bf16 } else { DType::F32 })
}

/// `a (m, k) b (k, n)`, naively.
pub(crate) fn product(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            y[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
        }
    }
    y
}

/// The transpose of `a (rows, cols)`.
pub(crate) fn transposed(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| a[r * cols + c])).collect()
}

/// The error of one rounding to `dtype` (relative), and of a sum of `k` products of numbers from [-2, 2]: a random walk
/// of `sqrt(k)` roundings of partial sums of about `2 sqrt(k)`, taken four times.
pub(crate) fn tolerance(dtype: DType, k: usize) -> f64 {
    let sum = 8.0 * k as f64 * 2f64.powi(-24);
    sum + match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 0.0,
    }
}

/// Runs `f` on as many threads.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool starts").install(f)
}
