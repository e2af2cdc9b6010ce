//! What a product can read: a matrix that hands out pieces of its rows, and the formats that fast packers know.

use half::{bf16, f16};

/// A read-only row-major matrix that a product reads piece by piece.
pub trait Source: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Number of columns.
    fn cols(&self) -> usize;
    /// Reads `out.len()` consecutive elements of row `row`, starting at column `col`.
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]);
    /// As [`Source::read_f32`], each value rounded to bf16 (nearest, ties to even).
    fn read_bf16(&self, row: usize, col: usize, out: &mut [bf16]) {
        let mut chunk = [0.0f32; 64];
        for (i, piece) in out.chunks_mut(chunk.len()).enumerate() {
            let values = &mut chunk[..piece.len()];
            self.read_f32(row, col + i * 64, values);
            for (o, v) in piece.iter_mut().zip(values.iter()) {
                *o = bf16::from_f32(*v);
            }
        }
    }
    /// The storage behind this matrix if it is one that packers have fast paths for.
    fn as_view(&self) -> View<'_> {
        View::Other
    }
}

/// The storage behind a [`Source`], row-major and without gaps.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Dense f32, `rows * cols` values.
    F32(&'a [f32]),
    /// Dense bf16, `rows * cols` values.
    Bf16(&'a [bf16]),
    /// Dense f16, `rows * cols` values.
    F16(&'a [f16]),
    /// 4-bit codes with a scale a block.
    Lut4(Lut4<'a>),
    /// 8-bit codes with a scale a row.
    Rows8(Rows8<'a>),
    /// Anything else: read through [`Source::read_f32`] and [`Source::read_bf16`].
    Other,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// The element types of [`Dense`]: f32, bf16 and f16.
pub trait Element: Copy + Send + Sync + sealed::Sealed {
    /// The value as f32 (exact).
    fn to_f32(self) -> f32;
    /// The matching view of a slice.
    fn view(data: &[Self]) -> View<'_>
    where
        Self: Sized;
}

macro_rules! element {
    ($t:ty, $view:path, |$x:ident| $to:expr) => {
        impl Element for $t {
            fn to_f32(self) -> f32 {
                let $x = self;
                $to
            }
            fn view(data: &[Self]) -> View<'_> {
                $view(data)
            }
        }
    };
}
element!(f32, View::F32, |x| x);
element!(bf16, View::Bf16, |x| x.to_f32());
element!(f16, View::F16, |x| x.to_f32());

/// A dense row-major matrix (rows, cols).
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a, T> {
    rows: usize,
    cols: usize,
    data: &'a [T],
}

impl<'a, T: Element> Dense<'a, T> {
    /// A view of `data` as a (rows, cols) matrix.
    ///
    /// # Panics
    /// If `data` does not hold exactly `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, data: &'a [T]) -> Self {
        assert_eq!(data.len(), rows * cols, "a dense ({rows}, {cols}) matrix needs rows * cols elements");
        Self { rows, cols, data }
    }
}

impl<T: Element> Source for Dense<'_, T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        let start = row * self.cols + col;
        for (o, v) in out.iter_mut().zip(&self.data[start..]) {
            *o = v.to_f32();
        }
    }
    fn as_view(&self) -> View<'_> {
        T::view(self.data)
    }
}

/// The scales of a [`Lut4`]: one f32 a block, or quantised once more.
#[derive(Clone, Copy, Debug)]
pub enum Scales4<'a> {
    /// One scale a block.
    Plain(&'a [f32]),
    /// Double quantisation: scale = f32(f32(map\[code\] * nested_absmax\[block / nested_block_size\]) + offset).
    Double {
        /// One 8-bit code a block.
        codes: &'a [u8],
        /// Value of each 8-bit code.
        map: &'a [f32; 256],
        /// One scale per `nested_block_size` codes.
        nested_absmax: &'a [f32],
        /// Codes per nested scale.
        nested_block_size: usize,
        /// Added to every decoded scale.
        offset: f32,
    },
}

impl Scales4<'_> {
    /// The scales of blocks `first..first + out.len()`.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 decodes scales beforehand"))]
    #[inline(always)]
    pub(crate) fn fill(&self, first: usize, out: &mut [f32]) {
        match *self {
            Scales4::Plain(scales) => out.copy_from_slice(&scales[first..first + out.len()]),
            Scales4::Double { codes, map, nested_absmax, nested_block_size, offset } => {
                let (mut at, mut out) = (first, out);
                while !out.is_empty() {
                    let group = at / nested_block_size;
                    let len = ((group + 1) * nested_block_size - at).min(out.len());
                    let (run, rest) = out.split_at_mut(len);
                    for (o, code) in run.iter_mut().zip(&codes[at..at + len]) {
                        *o = map[usize::from(*code)] * nested_absmax[group] + offset;
                    }
                    (at, out) = (at + len, rest);
                }
            }
        }
    }

    /// The scale of block `block`.
    #[inline(always)]
    pub fn get(&self, block: usize) -> f32 {
        match *self {
            Scales4::Plain(scales) => scales[block],
            Scales4::Double { codes, map, nested_absmax, nested_block_size, offset } => {
                // A division takes longer than all the rest, and the size is a power of two in practice.
                let group = if nested_block_size.is_power_of_two() {
                    block >> nested_block_size.trailing_zeros()
                } else {
                    block / nested_block_size
                };
                map[usize::from(codes[block])] * nested_absmax[group] + offset
            }
        }
    }
}

/// 4-bit codes in blocks of the flat row-major matrix (a block may straddle rows), two a byte, high nibble first.
/// Element `i` is f32(table\[code i\] * scale of block i / block_size).
#[derive(Clone, Copy, Debug)]
pub struct Lut4<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) packed: &'a [u8],
    pub(crate) table: &'a [f32; 16],
    pub(crate) scales: Scales4<'a>,
    pub(crate) block_size: usize,
}

impl<'a> Lut4<'a> {
    /// A view of 4-bit blocks as a (rows, cols) matrix.
    ///
    /// # Panics
    /// If the block size is 0 or odd, or `packed` or `scales` is too short for `rows * cols` elements.
    pub fn new(
        (rows, cols): (usize, usize),
        packed: &'a [u8],
        table: &'a [f32; 16],
        scales: Scales4<'a>,
        block_size: usize,
    ) -> Self {
        let len = rows * cols;
        assert!(block_size > 0 && block_size.is_multiple_of(2), "a 4-bit block size must be even, not {block_size}");
        let blocks = len.div_ceil(block_size);
        assert!(packed.len() >= len.div_ceil(2), "({rows}, {cols}) 4-bit codes do not fit {} bytes", packed.len());
        let (have, nested) = match scales {
            Scales4::Plain(s) => (s.len(), true),
            Scales4::Double { codes, nested_absmax, nested_block_size, .. } => {
                (codes.len(), nested_block_size > 0 && nested_absmax.len() >= blocks.div_ceil(nested_block_size.max(1)))
            }
        };
        assert!(
            have >= blocks && nested,
            "({rows}, {cols}) in blocks of {block_size} needs {blocks} scales, got {have}"
        );
        Self { rows, cols, packed, table, scales, block_size }
    }
}

impl Source for Lut4<'_> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        let start = row * self.cols + col;
        for (i, o) in (start..).zip(out) {
            let byte = self.packed[i / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            *o = self.table[usize::from(code)] * self.scales.get(i / self.block_size);
        }
    }
    fn as_view(&self) -> View<'_> {
        View::Lut4(*self)
    }
}

/// 1/127 as LLM.int8() multiplies by it.
const INV_127: f32 = 7.874_016e-3;

/// 8-bit codes with one absmax a row, as LLM.int8() stores a weight; element = f32(f32(code * absmax) * (1/127)).
#[derive(Clone, Copy, Debug)]
pub struct Rows8<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) codes: &'a [u8],
    pub(crate) absmax: &'a [f32],
}

impl<'a> Rows8<'a> {
    /// A view of 8-bit codes (two's complement, as bytes) as a (rows, cols) matrix.
    ///
    /// # Panics
    /// If `codes` is not `rows * cols` long or `absmax` not `rows` long.
    pub fn new(rows: usize, cols: usize, codes: &'a [u8], absmax: &'a [f32]) -> Self {
        assert_eq!(codes.len(), rows * cols, "an 8-bit ({rows}, {cols}) matrix needs rows * cols codes");
        assert_eq!(absmax.len(), rows, "an 8-bit ({rows}, {cols}) matrix needs one absmax a row");
        Self { rows, cols, codes, absmax }
    }
}

impl Source for Rows8<'_> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        let start = row * self.cols + col;
        let absmax = self.absmax[row];
        for (o, &code) in out.iter_mut().zip(&self.codes[start..]) {
            *o = f32::from(code.cast_signed()) * absmax * INV_127;
        }
    }
    fn as_view(&self) -> View<'_> {
        View::Rows8(*self)
    }
}
