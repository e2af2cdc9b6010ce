//! Products `aᵀ b` of which one operand has few columns, as the gradients of LoRA's factors are: the other is read as it is stored.
//!
//! In [`crate::gemm`] such an operand would be interleaved into panels, which for few columns takes longer than the product. The order
//! of sums is the same, so the way that is taken changes no bit.

use crate::buffers::with_buffers;
use crate::fork;
use crate::gemm::{SMALL, spans};
use crate::kernels::{Epilogue, Kernel, Operands, THIN, THIN_COLS, Target, Tile, Under};
use crate::pack::Span;
use crate::product::{Operand, Out, Product, Trans};
use crate::reader::Reader;
use crate::sources::View;

/// Columns of the thin operand, at most.
const FEW: usize = 64;
/// Columns of the other that one piece of work covers: whole cache lines of each row.
const COLS: usize = 3 * THIN_COLS;
/// Stored rows that all columns of the thin operand meet before the next ones do: with [`COLS`] they stay in a near cache.
const ROWS: usize = 64;
/// Word rows of the thin operand that are packed together.
const TOGETHER: usize = 64;

/// A product that goes this way.
pub(crate) struct Thin<'a> {
    kernel: &'static Kernel,
    /// The elements of either operand, all its rows, and where row 0 begins.
    few: (View<'a>, usize),
    many: (View<'a>, usize),
    /// Columns of both, and rows.
    extents: (usize, usize, usize),
    /// Whether the thin operand is the left one.
    few_first: bool,
}

impl<'a> Thin<'a> {
    /// Whether this is the way for a product; `None` if not.
    pub(crate) fn of(kernel: &'static Kernel, p: &Product<'a>) -> Option<Thin<'a>> {
        let ((m, k), n) = (p.a.dims(), p.b.dims().1);
        let fits = kernel.thin.is_some()
            && p.more.is_empty()
            // What else happens to a sum on its way out may happen between two parts of it in the other way.
            && (p.alpha, p.bias, p.accumulate) == (1.0, None, false)
            && (p.a.trans, p.b.trans) == (Trans::Yes, Trans::No)
            && m.min(n) <= FEW
            && m.max(n) >= THIN_COLS
            && k > 0;
        if !fits {
            return None;
        }
        let few_first = m <= n;
        let (few, many) = if few_first { (p.a, p.b) } else { (p.b, p.a) };
        let stored = |it: &Operand<'a>| match (it.source.as_view(), kernel.operands) {
            (view @ View::Bf16(_), Operands::Bf16Pairs) | (view @ View::F32(_), Operands::F32) => {
                Some((view, Reader::new(it, kernel.isa).first_element()))
            }
            _ => None,
        };
        let (few, many) = (stored(&few)?, stored(&many)?);
        Some(Thin { kernel, few, many, extents: (m.min(n), m.max(n), k), few_first })
    }

    pub(crate) fn run(&self, out: Out<'_>) {
        let (few, many, k) = self.extents;
        let (lanes, words) = (few.next_multiple_of(THIN), self.kernel.operands.words(k));
        let target = Target::new(out, if self.few_first { many } else { few });
        let small = few * many * k <= SMALL;
        with_buffers(|buffers| {
            let left = buffers.panels.words(words * lanes);
            let pack = |(i, words): (usize, &mut [u32])| self.pack(i * TOGETHER, lanes, words);
            if small {
                left.chunks_mut(TOGETHER * lanes).enumerate().for_each(pack);
            } else {
                fork::chunks(left, TOGETHER * lanes, pack);
            }
            let left = &*left;
            let strips = many.div_ceil(COLS);
            let work = |i: usize| self.strip((left, lanes), (i * COLS, many.min((i + 1) * COLS)), &target);
            if small {
                (0..strips).for_each(work);
            } else {
                fork::apart(strips, work);
            }
        });
    }

    /// Fills word rows from `first` on with the thin operand, and zeros beside it.
    fn pack(&self, first: usize, lanes: usize, words: &mut [u32]) {
        let ((view, origin), (few, _, k)) = (self.few, self.extents);
        for (q, words) in words.chunks_exact_mut(lanes).enumerate() {
            let (words, rest) = words.split_at_mut(few);
            rest.fill(0);
            match view {
                View::F32(stored) => {
                    let row = &stored[origin + (first + q) * few..][..few];
                    words.iter_mut().zip(row).for_each(|(word, v)| *word = v.to_bits());
                }
                View::Bf16(stored) => {
                    let row = 2 * (first + q);
                    let (even, odd) = stored[origin + row * few..][..few * 2.min(k - row)].split_at(few);
                    words.iter_mut().zip(even).for_each(|(word, v)| *word = u32::from(v.to_bits()));
                    words.iter_mut().zip(odd).for_each(|(word, v)| *word |= u32::from(v.to_bits()) << 16);
                }
                _ => unreachable!("only stored numbers go this way"),
            }
        }
    }

    /// Computes what belongs to some columns of the wide operand.
    fn strip(&self, (left, lanes): (&[u32], usize), (c0, c1): (usize, usize), target: &Target<'_>) {
        let (few, _, k) = self.extents;
        let epilogue = Epilogue { alpha: 1.0, bias: None, accumulate: false };
        with_buffers(|own| {
            let (sums, total) = own.tiles.floats(2 * lanes * COLS).split_at_mut(lanes * COLS);
            for (i, span) in spans(self.kernel, k).enumerate() {
                sums.fill(0.0);
                self.piece((left, lanes), (c0, c1), span, sums);
                if i == 0 {
                    total.copy_from_slice(sums);
                } else {
                    total.iter_mut().zip(&*sums).for_each(|(total, sum)| *total += sum);
                }
            }
            if self.few_first {
                let tile = Tile { sums: total, stride: COLS, rows: (0, few), cols: (c0, c1) };
                self.kernel.isa.store(target, tile, &epilogue);
                return;
            }
            for (j, row) in sums.chunks_mut(lanes).enumerate() {
                row.iter_mut().enumerate().for_each(|(i, sum)| *sum = total[i * COLS + j]);
            }
            let tile = Tile { sums, stride: lanes, rows: (c0, c1), cols: (0, few) };
            self.kernel.isa.store(target, tile, &epilogue);
        });
    }

    /// Adds the products of a piece of k to the sums.
    fn piece(&self, (left, lanes): (&[u32], usize), (c0, c1): (usize, usize), span: Span, sums: &mut [f32]) {
        let ((view, origin), many) = (self.many, self.extents.1);
        for row in (span.start..span.start + span.len).step_by(ROWS) {
            let rows = ROWS.min(span.start + span.len - row);
            let words = &left[self.kernel.operands.words(row) * lanes..];
            for col in (c0..c1).step_by(THIN_COLS) {
                let (start, extents) = (origin + row * many + col, (rows, THIN_COLS.min(c1 - col)));
                let under = match view {
                    View::Bf16(stored) => Under::new(stored, start, many, extents),
                    View::F32(stored) => Under::new(stored, start, many, extents),
                    _ => unreachable!("only stored numbers go this way"),
                };
                fork::point();
                for lane in (0..lanes).step_by(THIN) {
                    let sums = &mut sums[lane * COLS + col - c0..];
                    self.kernel.multiply_thin((&words[lane..], lanes), under, (sums, COLS));
                }
            }
        }
    }
}
