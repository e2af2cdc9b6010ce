//! The public product: what is multiplied, how it is computed, and where the result goes.

use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};

use crate::kernels::{self, Kernel};
use crate::sources::Source;
use crate::thin::Thin;
use crate::{PackedLeft, gemm, gemv};

/// How the operands enter the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Operands as f32, sums in f32.
    F32,
    /// Operands rounded to bf16 (nearest, ties to even), sums in f32. Hardware bf16 kernels treat subnormal
    /// operands and results as zero.
    Bf16,
}

/// Whether an operand is taken as stored or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trans {
    /// As stored.
    No,
    /// Transposed.
    Yes,
}

/// A matrix, perhaps transposed.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// The stored matrix.
    pub source: &'a dyn Source,
    /// Whether the product sees its transpose.
    pub trans: Trans,
    /// The first of the stored rows that take part, and how many do.
    pub(crate) rows: (usize, usize),
    /// The operand as tile kernels read it.
    pub(crate) packed: Option<&'a PackedLeft>,
}

impl<'a> Operand<'a> {
    /// The matrix as stored.
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, trans: Trans::No, rows: (0, source.rows()), packed: None }
    }

    /// Only `len` stored rows of this operand, from `start` on.
    ///
    /// # Panics
    /// If it has no such rows.
    #[must_use]
    pub fn rows(self, start: usize, len: usize) -> Self {
        let (first, rows) = self.rows;
        assert!(start <= rows && len <= rows - start, "rows {start}..{} of {rows}", start.saturating_add(len));
        Self { rows: (first + start, len), packed: None, ..self }
    }

    /// The transpose of this operand.
    #[must_use]
    pub fn t(self) -> Self {
        let trans = if self.trans == Trans::No { Trans::Yes } else { Trans::No };
        Self { trans, packed: None, ..self }
    }

    /// This left operand with its panels, so that a product need not pack them again.
    ///
    /// # Panics
    /// If the panels were made from an operand of other dimensions.
    #[must_use]
    pub fn packed(self, packed: &'a PackedLeft) -> Self {
        assert_eq!(self.dims(), packed.dims(), "panels belong to the operand that they were packed from");
        Self { packed: Some(packed), ..self }
    }

    /// (rows, cols) as the product sees them.
    pub fn dims(&self) -> (usize, usize) {
        let (r, c) = (self.rows.1, self.source.cols());
        if self.trans == Trans::No { (r, c) } else { (c, r) }
    }
}

/// Where a product goes: a row-major (m, n) slice.
#[derive(Debug)]
pub enum Out<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// bf16, rounded to nearest, ties to even.
    Bf16(&'a mut [bf16]),
    /// f16, rounded to nearest, ties to even.
    F16(&'a mut [f16]),
}

impl Out<'_> {
    fn len(&self) -> usize {
        match self {
            Out::F32(o) => o.len(),
            Out::Bf16(o) => o.len(),
            Out::F16(o) => o.len(),
        }
    }
}

/// out (m, n) = alpha · (op(a) (m, k) · op(b) (k, n) + more) + bias, added to what `out` holds if `accumulate`.
///
/// Put a quantised weight on the `b` side: `b` is decoded a narrow strip at a time, while `a` is packed up to 4 MiB at
/// a time.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Left operand, (m, k) as the product sees it.
    pub a: Operand<'a>,
    /// Right operand, (k, n) as the product sees it.
    pub b: Operand<'a>,
    /// Factor on the products (not on the bias).
    pub alpha: f32,
    /// Add to the output instead of replacing it.
    pub accumulate: bool,
    /// (n), added to each row.
    pub bias: Option<&'a [f32]>,
    /// How the operands enter.
    pub compute: Compute,
    /// Further products that are summed with a · b before the sum goes anywhere: their inner dimensions may differ.
    /// One pass over the output then does for all.
    pub more: &'a [(Operand<'a>, Operand<'a>)],
}

impl<'a> Product<'a> {
    /// a · b, with alpha 1, no bias, replacing the output.
    pub fn new(a: Operand<'a>, b: Operand<'a>, compute: Compute) -> Self {
        Self { a, b, alpha: 1.0, accumulate: false, bias: None, compute, more: &[] }
    }

    /// Its operands, pair by pair.
    pub(crate) fn terms(&self) -> impl Iterator<Item = (&Operand<'a>, &Operand<'a>)> {
        std::iter::once((&self.a, &self.b)).chain(self.more.iter().map(|it| (&it.0, &it.1)))
    }
}

static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations of all products of this process so far: 2 m n k each.
pub fn operations() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

/// Computes `p` into `out` on the current rayon pool. The bits of the result do not depend on the number of threads.
///
/// # Panics
/// If the dimensions of operands do not fit each other, or `out` or the bias has the wrong length.
pub fn matmul(p: &Product<'_>, out: Out<'_>) {
    matmul_with(kernels::select(p.compute), p, out);
}

pub(crate) fn matmul_with(kernel: &'static Kernel, p: &Product<'_>, out: Out<'_>) {
    let ((m, k), n) = (p.a.dims(), p.b.dims().1);
    for (a, b) in p.terms() {
        let ((ma, ka), (kb, nb)) = (a.dims(), b.dims());
        assert_eq!(ka, kb, "product of ({ma}, {ka}) and ({kb}, {nb}): the inner dimensions must agree");
        assert_eq!((ma, nb), (m, n), "product of ({ma}, {ka}) and ({kb}, {nb}): a sum needs ({m}, {n})");
    }
    assert_eq!(out.len(), m * n, "product of ({m}, {k}) and ({k}, {n}): the output must hold m * n elements");
    if let Some(bias) = p.bias {
        assert_eq!(bias.len(), n, "product of ({m}, {k}) and ({k}, {n}): the bias must hold n elements");
    }
    if m == 0 || n == 0 {
        return;
    }
    let inner: usize = p.terms().map(|(a, _)| a.dims().1).sum();
    OPERATIONS.fetch_add(2 * (m * n * inner) as u64, Ordering::Relaxed);
    if gemv::takes(kernel, p) {
        gemv::run(kernel, p, out);
    } else if let Some(thin) = Thin::of(kernel, p) {
        thin.run(out);
    } else {
        gemm::run(kernel, p, out);
    }
}
