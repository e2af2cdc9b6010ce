//! The vector helpers around the tile kernel, one table per instruction set.
//!
//! The entries are `unsafe fn` only because each needs its instruction set; the methods are safe because a table is
//! handed out only where its set was detected.

use half::bf16;

use super::output::{Epilogue, Target, Tile};
use super::{STEP, TILE_LANES};
use crate::sources::Lut4;

/// Lanes that [`Isa::transpose_f32`] and [`Isa::transpose_bf16`] take at once.
pub(crate) const GROUP: usize = 16;

/// Where a transposed group of lanes goes inside a panel.
pub(crate) struct Slot<'a> {
    /// The panel from the first word row on: word `q` of lane `i` is `panel[q * width + lane + i]`.
    pub(crate) panel: &'a mut [u32],
    /// Lanes of the panel.
    pub(crate) width: usize,
    /// First lane of this group. Lanes from `width` on are not stored. A vector store may spill into the lanes below
    /// `lane` of the following word row, so groups are stored from the highest to the lowest.
    pub(crate) lane: usize,
    /// How many elements behind these rows lie those that are transposed next, to be asked for meanwhile; 0 if that is not known.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 asks for memory"))]
    pub(crate) ahead: usize,
}

/// One word row of several panels: lane `i` of panel `p` is `words[p * stride + i]`.
pub(crate) struct WordRow<'a> {
    pub(crate) words: &'a mut [u32],
    /// Lanes of a panel.
    pub(crate) width: usize,
    pub(crate) stride: usize,
    /// Panels. Lanes that a row does not reach become zero.
    pub(crate) count: usize,
    /// Whether the word row that follows in each panel is written later, so that a vector store may spill into it.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only panels of 14 lanes have stores that spill")
    )]
    pub(crate) spill: bool,
    /// As of [`Slot`].
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 asks for memory"))]
    pub(crate) ahead: usize,
}

/// The vector helpers of one instruction set.
pub(crate) struct Isa {
    pub(crate) transpose_f32: unsafe fn(&[&[f32]; GROUP], Slot<'_>),
    pub(crate) transpose_bf16: unsafe fn(&[&[bf16]; GROUP], Slot<'_>),
    pub(crate) lay_pairs: unsafe fn(&[bf16], &mut [u32]),
    pub(crate) turn_step: unsafe fn(&mut [u32; STEP * TILE_LANES]),
    pub(crate) deal_f32: unsafe fn(&[f32], WordRow<'_>),
    pub(crate) deal_pairs: unsafe fn((&[bf16], &[bf16]), WordRow<'_>),
    pub(crate) lut4_f32: unsafe fn(&Lut4<'_>, usize, &mut [f32], bool),
    pub(crate) lut4_bf16: unsafe fn(&Lut4<'_>, usize, &mut [bf16]),
    pub(crate) widen: unsafe fn(&[bf16], &mut [f32]),
    pub(crate) round: unsafe fn(&[f32], &mut [bf16]),
    pub(crate) round_in_place: unsafe fn(&mut [f32]),
    pub(crate) dot_f32: unsafe fn(&[f32], &[f32]) -> f32,
    pub(crate) dot_bf16: unsafe fn(&[f32], &[bf16]) -> f32,
    pub(crate) axpy_f32: unsafe fn(f32, &[f32], &mut [f32]),
    pub(crate) axpy_bf16: unsafe fn(f32, &[bf16], &mut [f32]),
    pub(crate) store: unsafe fn(&Target<'_>, Tile<'_>, &Epilogue<'_>),
    /// Decodes two rows of 4-bit blocks from the elements given and deals them out as `deal_pairs` does, all lanes of all
    /// panels, of 32 each. Rows begin at multiples of 32 and blocks are such multiples.
    pub(super) deal_lut4: Option<DealLut4>,
    /// Dot products in bf16, where the processor has them.
    pub(crate) dots: Option<Dots>,
}

type DealLut4 = for<'a> unsafe fn(&Lut4<'a>, [usize; 2], WordRow<'_>);

/// Dot products of one to four rows with a stored row, all in bf16 with sums in f32.
#[derive(Clone, Copy)]
pub(crate) struct Dots {
    /// Rows of the left operand have a multiple of so many elements, the last of them zeros where nothing is stored.
    pub(crate) step: usize,
    /// Lays a row of the left operand out as the others want it.
    pub(crate) lay_out: fn(&mut [bf16]),
    /// Adds the product of `x[i]` and stored row `r` to `out[r * x.len() + i]`.
    pub(crate) dense: DotsWith<[bf16]>,
    /// Adds the product of `x[i]` and stored row `r`, decoded from 4-bit blocks, to `out[r * x.len() + i]`.
    pub(crate) lut4: DotsLut4,
}

/// Rows of the left operand, how many elements of a stored row are multiplied, the stored matrix, which of its rows, and the sums.
type DotsWith<M> = unsafe fn(&[&[bf16]], usize, &M, Stored, &mut [f32]);
type DotsLut4 = for<'a> unsafe fn(&[&[bf16]], usize, &Lut4<'a>, Stored, &mut [f32]);

/// Stored rows: where the first begins in the flat matrix, how far apart they are, and how many.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 has dots"))]
pub(crate) struct Stored {
    pub(crate) start: usize,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
}

impl Dots {
    pub(crate) fn dense(&self, x: &[&[bf16]], len: usize, w: &[bf16], at: Stored, out: &mut [f32]) {
        // SAFETY: as in `safe_call` below.
        unsafe { (self.dense)(x, len, w, at, out) }
    }

    pub(crate) fn lut4(&self, x: &[&[bf16]], len: usize, l: &Lut4<'_>, at: Stored, out: &mut [f32]) {
        // SAFETY: as in `safe_call` below.
        unsafe { (self.lut4)(x, len, l, at, out) }
    }
}

impl Isa {
    /// Whether [`Isa::deal_lut4`] takes rows of `l` that begin with column `first`.
    pub(crate) fn deals_lut4(&self, l: &Lut4<'_>, first: usize) -> bool {
        self.deal_lut4.is_some() && [l.block_size, l.cols, first].into_iter().all(|it| it.is_multiple_of(32))
    }

    /// Decodes two rows from the elements given and deals them out, where [`Isa::deals_lut4`] says so.
    pub(crate) fn deal_lut4(&self, l: &Lut4<'_>, starts: [usize; 2], out: WordRow<'_>) {
        let deal = self.deal_lut4.expect("asked for where it is present");
        // SAFETY: as in `safe_call` below.
        unsafe { deal(l, starts, out) }
    }
}

macro_rules! safe_call {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        impl Isa {
            $($(#[$doc])* pub(crate) fn $name(&self, $($arg: $ty),*) $(-> $ret)? {
                // SAFETY: tables are reached only through `kernels::select` and `kernels::all`, which hand out a table
                // only where its instruction set was detected; the functions check their slices themselves.
                unsafe { (self.$name)($($arg),*) }
            })*
        }
    };
}

safe_call! {
    /// Stores 16 rows of equal length as 16 lanes of a panel of f32 words.
    transpose_f32(rows: &[&[f32]; GROUP], slot: Slot<'_>);
    /// As `transpose_f32`, a word holding two consecutive elements (the second is zero past an odd end).
    transpose_bf16(rows: &[&[bf16]; GROUP], slot: Slot<'_>);
    /// Stores a row as one lane of a left panel of tiles: word `q` of step `s` is `panel[s * STEP * TILE_LANES + q]`. The rest
    /// of the last step becomes zero.
    lay_pairs(row: &[bf16], panel: &mut [u32]);
    /// Turns a step of a panel of 32 lanes from word rows to what left panels of tiles hold: word `q` of lane `i` goes from
    /// `step[q * TILE_LANES + i]` to `step[i * STEP + q]`.
    turn_step(step: &mut [u32; STEP * TILE_LANES]);
    /// Deals a row out to the lanes of panels.
    deal_f32(row: &[f32], out: WordRow<'_>);
    /// As `deal_f32`, a word holding (`even[j]`, `odd[j]`).
    deal_pairs(rows: (&[bf16], &[bf16]), out: WordRow<'_>);
    /// Decodes elements `start..start + out.len()`, rounded to bf16 if asked.
    lut4_f32(l: &Lut4<'_>, start: usize, out: &mut [f32], round: bool);
    /// Decodes elements `start..start + out.len()` and rounds them to bf16.
    lut4_bf16(l: &Lut4<'_>, start: usize, out: &mut [bf16]);
    /// bf16 to f32, exact.
    widen(x: &[bf16], out: &mut [f32]);
    /// f32 to bf16, nearest, ties to even.
    round(x: &[f32], out: &mut [bf16]);
    /// Rounds to bf16, kept as f32.
    round_in_place(x: &mut [f32]);
    /// Sum of products, in an order fixed by the length.
    dot_f32(x: &[f32], y: &[f32]) -> f32;
    /// As `dot_f32`.
    dot_bf16(x: &[f32], y: &[bf16]) -> f32;
    /// y += s * x.
    axpy_f32(s: f32, x: &[f32], y: &mut [f32]);
    /// y += s * x.
    axpy_bf16(s: f32, x: &[bf16], y: &mut [f32]);
    /// Writes a tile to the output.
    ///
    /// Two threads must not store overlapping tiles at the same time; the callers hand out disjoint ones.
    store(target: &Target<'_>, tile: Tile<'_>, epilogue: &Epilogue<'_>);
}
