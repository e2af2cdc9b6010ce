//! A left operand packed once for several products, as where queries, keys and values read the same activations.

use std::sync::{Mutex, PoisonError};

use crate::buffers::with_buffers;
use crate::fork;
use crate::gemm::spans;
use crate::gemv;
use crate::kernels::words::Words;
use crate::kernels::{self, Kernel};
use crate::pack::{Panels, Side};
use crate::product::{Compute, Operand};

/// Beyond, a product packs a block at a time instead, so that panels stay in the far cache.
const MAX_WORDS: usize = 4 << 20;
/// Panels that one piece of work packs.
const TOGETHER: usize = 4;

/// The panels of a left operand. See [`Operand::packed`].
pub struct PackedLeft {
    kernel: &'static Kernel,
    dims: (usize, usize),
    /// Words from one panel to the next.
    stride: usize,
    words: Words,
}

/// Buffers between two uses. All threads share them, since an operand may be dropped by another thread than packed it.
static IDLE: Mutex<Vec<Words>> = Mutex::new(Vec::new());

impl PackedLeft {
    /// Packs `a` as products in `compute` read it. `None` where that would not pay: few rows, or a very large operand.
    pub fn new(a: &Operand<'_>, compute: Compute) -> Option<PackedLeft> {
        Self::with_kernel(kernels::select(compute), a)
    }

    /// The bytes that panels of an operand of these dimensions take; 0 where there are none.
    pub fn bytes((m, k): (usize, usize), compute: Compute) -> usize {
        let words = Self::words(kernels::select(compute), (m, k));
        4 * words.map_or(0, |it| it.1)
    }

    /// Words from one panel to the next, and in all.
    fn words(kernel: &Kernel, (m, k): (usize, usize)) -> Option<(usize, usize)> {
        let stride = kernel.operands.words(k) * kernel.mr;
        let words = m.div_ceil(kernel.mr) * stride;
        (m > gemv::most_rows(kernel) && k > 0 && words <= MAX_WORDS).then_some((stride, words))
    }

    pub(crate) fn with_kernel(kernel: &'static Kernel, a: &Operand<'_>) -> Option<PackedLeft> {
        let (m, k) = a.dims();
        let (stride, words) = Self::words(kernel, (m, k))?;
        let side = Side::left(kernel, a);
        let mut buffer = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        fork::chunks(buffer.words(words), TOGETHER * stride, |(i, panels)| {
            let count = panels.len() / stride;
            with_buffers(|own| {
                for span in spans(kernel, k) {
                    fork::point();
                    let words = &mut panels[kernel.operands.words(span.start) * kernel.mr..];
                    side.pack(i * TOGETHER * kernel.mr, span, &mut Panels { words, stride, count }, &mut own.pieces);
                }
            });
        });
        Some(PackedLeft { kernel, dims: (m, k), stride, words: buffer })
    }

    /// (rows, cols) of the operand.
    pub(crate) fn dims(&self) -> (usize, usize) {
        self.dims
    }

    pub(crate) fn is_for(&self, kernel: &'static Kernel) -> bool {
        std::ptr::eq(self.kernel, kernel)
    }

    /// All panels, and the words from one to the next.
    pub(crate) fn panels(&self) -> (&[u32], usize) {
        let panels = self.dims.0.div_ceil(self.kernel.mr);
        (self.words.filled(panels * self.stride), self.stride)
    }
}

impl Drop for PackedLeft {
    fn drop(&mut self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.words));
    }
}

impl std::fmt::Debug for PackedLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedLeft")
            .field("dims", &self.dims)
            .field("kernel", &self.kernel.name)
            .finish_non_exhaustive()
    }
}
