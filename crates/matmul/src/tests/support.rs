//! Matrices of every kind, and the oracle.

use half::{bf16, f16};

use crate::kernels::{self, Kernel};
use crate::product::matmul_with;
use crate::{Compute, Dense, Lut4, Operand, Out, Product, Rows8, Scales4, Source};

/// What has to be equal where results are promised to be the same.
pub(super) fn bits(of: &[f32]) -> Vec<u32> {
    of.iter().map(|it| it.to_bits()).collect()
}

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [-2, 2).
    pub(super) fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    }
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
}

/// 16 unevenly spaced values, so that a wrong nibble shows.
pub(super) const TABLE: [f32; 16] =
    [-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    F32,
    Bf16,
    F16,
    Lut4 { block: usize, double: bool },
    Rows8,
    Other,
}

pub(super) const KINDS: [Kind; 8] = [
    Kind::F32,
    Kind::Bf16,
    Kind::F16,
    Kind::Lut4 { block: 64, double: false },
    Kind::Lut4 { block: 32, double: true },
    Kind::Lut4 { block: 6, double: false },
    Kind::Rows8,
    Kind::Other,
];

/// A stored matrix that owns its data.
pub(super) struct Stored {
    kind: Kind,
    rows: usize,
    cols: usize,
    f32s: Vec<f32>,
    bf16s: Vec<bf16>,
    f16s: Vec<f16>,
    bytes: Vec<u8>,
    codes: Vec<u8>,
    scale_codes: Vec<u8>,
    map: [f32; 256],
}

impl Stored {
    pub(super) fn new(kind: Kind, rows: usize, cols: usize, rng: &mut Rng) -> Self {
        let len = rows * cols;
        let mut s = Self {
            kind,
            rows,
            cols,
            f32s: (0..len.max(rows)).map(|_| rng.value()).collect(),
            bf16s: Vec::new(),
            f16s: Vec::new(),
            bytes: (0..len.div_ceil(2)).map(|_| rng.bits() as u8).collect(),
            codes: (0..len).map(|_| (rng.bits() as i8).max(-127).cast_unsigned()).collect(),
            scale_codes: (0..len).map(|_| rng.bits() as u8).collect(),
            map: std::array::from_fn(|i| i as f32 / 255.0),
        };
        s.bf16s = s.f32s.iter().map(|&x| bf16::from_f32(x)).collect();
        s.f16s = s.f32s.iter().map(|&x| f16::from_f32(x)).collect();
        s
    }

    pub(super) fn source(&self) -> Box<dyn Source + '_> {
        let (r, c) = (self.rows, self.cols);
        match self.kind {
            Kind::F32 => Box::new(Dense::new(r, c, &self.f32s[..r * c])),
            Kind::Bf16 => Box::new(Dense::new(r, c, &self.bf16s[..r * c])),
            Kind::F16 => Box::new(Dense::new(r, c, &self.f16s[..r * c])),
            Kind::Rows8 => Box::new(Rows8::new(r, c, &self.codes, &self.f32s[..r])),
            Kind::Other => Box::new(Opaque(self)),
            Kind::Lut4 { block, double } => {
                let scales = if double {
                    Scales4::Double {
                        codes: &self.scale_codes,
                        map: &self.map,
                        nested_absmax: &self.f32s,
                        nested_block_size: 4,
                        offset: 0.25,
                    }
                } else {
                    Scales4::Plain(&self.f32s)
                };
                Box::new(Lut4::new((r, c), &self.bytes, &TABLE, scales, block))
            }
        }
    }
}

/// A source without a view.
struct Opaque<'a>(&'a Stored);

impl Source for Opaque<'_> {
    fn rows(&self) -> usize {
        self.0.rows
    }
    fn cols(&self) -> usize {
        self.0.cols
    }
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        let start = row * self.0.cols + col;
        out.copy_from_slice(&self.0.f32s[start..start + out.len()]);
    }
}

/// All elements as a product of `compute` sees them, row-major as stored, read one by one.
pub(super) fn decoded(source: &dyn Source, compute: Compute) -> Vec<f32> {
    let mut out = Vec::new();
    for r in 0..source.rows() {
        for c in 0..source.cols() {
            let mut x = [0.0f32];
            source.read_f32(r, c, &mut x);
            out.push(if compute == Compute::Bf16 { bf16::from_f32(x[0]).to_f32() } else { x[0] });
        }
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum OutKind {
    F32,
    Bf16,
    F16,
}

/// One product to check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) dims: (usize, usize, usize),
    pub(super) a: (Kind, bool),
    pub(super) b: (Kind, bool),
    pub(super) compute: Compute,
    pub(super) out: OutKind,
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
    pub(super) bias: bool,
    pub(super) seed: u64,
}

impl Case {
    pub(super) fn plain(dims: (usize, usize, usize), a: (Kind, bool), b: (Kind, bool), compute: Compute) -> Self {
        Self { dims, a, b, compute, out: OutKind::F32, alpha: 1.0, accumulate: false, bias: false, seed: 1 }
    }

    pub(super) fn operands(&self) -> (Stored, Stored) {
        let ((m, n, k), mut rng) = (self.dims, Rng(self.seed));
        let (ar, ac) = if self.a.1 { (k, m) } else { (m, k) };
        let (br, bc) = if self.b.1 { (n, k) } else { (k, n) };
        (Stored::new(self.a.0, ar, ac, &mut rng), Stored::new(self.b.0, br, bc, &mut rng))
    }

    /// Runs the product on every kernel of this machine and compares each element with the f64 sum.
    pub(super) fn check(&self) {
        let (a, b) = self.operands();
        let (a, b) = (a.source(), b.source());
        self.check_with(|kernel| self.run(kernel, a.as_ref(), b.as_ref()));
    }

    /// Compares what `run` computes on every kernel of this machine with the f64 sum, element by element.
    pub(super) fn check_with(&self, run: impl Fn(&'static Kernel) -> Vec<f32>) {
        let (a, b) = self.operands();
        let want = self.expected(a.source().as_ref(), b.source().as_ref());
        for kernel in kernels::all(self.compute) {
            let got = run(kernel);
            for (i, (g, (w, tolerance))) in got.iter().zip(&want).enumerate() {
                assert!(
                    (f64::from(*g) - w).abs() <= *tolerance,
                    "{} {self:?}: element {i} is {g}, expected {w} within {tolerance}",
                    kernel.name
                );
            }
        }
    }

    pub(super) fn run(&self, kernel: &'static Kernel, a: &dyn Source, b: &dyn Source) -> Vec<f32> {
        let operand = |s, t| if t { Operand::new(s).t() } else { Operand::new(s) };
        self.run_terms(kernel, (operand(a, self.a.1), operand(b, self.b.1)), &[])
    }

    pub(super) fn run_terms<'s>(
        &self,
        kernel: &'static Kernel,
        (a, b): (Operand<'s>, Operand<'s>),
        more: &[(Operand<'s>, Operand<'s>)],
    ) -> Vec<f32> {
        let (m, n, _) = self.dims;
        let bias = self.bias_values();
        let p = Product {
            more,
            alpha: self.alpha,
            accumulate: self.accumulate,
            bias: self.bias.then_some(bias.as_slice()),
            ..Product::new(a, b, self.compute)
        };
        let old = self.old_values();
        match self.out {
            OutKind::F32 => {
                let mut out = old;
                matmul_with(kernel, &p, Out::F32(&mut out));
                assert_eq!(out.len(), m * n);
                out
            }
            OutKind::Bf16 => {
                let mut out: Vec<bf16> = old.iter().map(|&x| bf16::from_f32(x)).collect();
                matmul_with(kernel, &p, Out::Bf16(&mut out));
                out.iter().map(|x| x.to_f32()).collect()
            }
            OutKind::F16 => {
                let mut out: Vec<f16> = old.iter().map(|&x| f16::from_f32(x)).collect();
                matmul_with(kernel, &p, Out::F16(&mut out));
                out.iter().map(|x| x.to_f32()).collect()
            }
        }
    }

    fn bias_values(&self) -> Vec<f32> {
        let mut rng = Rng(self.seed ^ 0xb1a5);
        (0..self.dims.1).map(|_| rng.value()).collect()
    }

    fn old_values(&self) -> Vec<f32> {
        // Where the output is replaced, what it held must not matter.
        let mut rng = Rng(self.seed ^ 0x01d);
        let len = self.dims.0 * self.dims.1;
        // Quarters are exact in every output type.
        (0..len).map(|_| if self.accumulate { (rng.value() * 4.0).round() / 4.0 } else { f32::NAN }).collect()
    }

    /// (value, tolerance) of each element. The tolerance: each of the at most k + 3 roundings of a sum is at most eps
    /// of the sum of magnitudes; then the output's own rounding.
    fn expected(&self, a: &dyn Source, b: &dyn Source) -> Vec<(f64, f64)> {
        let (m, n, k) = self.dims;
        let (av, bv) = (decoded(a, self.compute), decoded(b, self.compute));
        let (bias, old) = (self.bias_values(), self.old_values());
        let mut out = Vec::new();
        for i in 0..m {
            for j in 0..n {
                let (mut sum, mut magnitude) = (0.0f64, 0.0f64);
                for q in 0..k {
                    let x = if self.a.1 { av[q * m + i] } else { av[i * k + q] };
                    let y = if self.b.1 { bv[j * k + q] } else { bv[q * n + j] };
                    let product = f64::from(x) * f64::from(y);
                    sum += product;
                    magnitude += product.abs();
                }
                let alpha = f64::from(self.alpha);
                let (mut value, mut magnitude) = (alpha * sum, alpha.abs() * magnitude);
                if self.bias {
                    value += f64::from(bias[j]);
                    magnitude += f64::from(bias[j]).abs();
                }
                if self.accumulate {
                    value += f64::from(old[i * n + j]);
                    magnitude += f64::from(old[i * n + j]).abs();
                }
                let eps = f64::from(f32::EPSILON);
                let summed = (k + 3) as f64 * eps * magnitude;
                let stored = match self.out {
                    OutKind::F32 => eps * value.abs(),
                    OutKind::Bf16 => (value.abs() + summed) / 256.0,
                    OutKind::F16 => (value.abs() + summed) / 2048.0 + 6e-8,
                };
                out.push((value, summed + stored + 1e-30));
            }
        }
        out
    }
}
