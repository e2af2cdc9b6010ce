//! The absmax of each 4-bit block, kept as it is or quantised once more.

use std::borrow::Cow;

use crate::blockwise8::{self, DynamicMap};
use crate::error::{Error, check_len};

/// Absmax values that share one nested absmax in double quantisation.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// One absmax for each 4-bit block.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// As `f32`.
    Plain(Vec<f32>),
    /// Double quantisation: `absmax[i] = map[codes[i]] * nested_absmax[i / 256] + offset` (each operation rounded to
    /// `f32`), with the signed [`DynamicMap`].
    Double {
        /// One byte for each block.
        codes: Vec<u8>,
        /// One scale for every 256 codes, the last group possibly shorter.
        nested_absmax: Vec<f32>,
        /// The mean of the absmax values.
        offset: f32,
    },
}

impl Scales {
    /// Quantises absmax values to 8 bits around their mean.
    ///
    /// The mean is an `f64` sum, in an order that depends only on the length, rounded to `f32`. (PyTorch sums in `f32`,
    /// so its offset may be two ulp away; decoding always uses the stored one.)
    pub fn double(absmax: &[f32]) -> Scales {
        Self::double_around(absmax, mean(absmax))
    }

    /// Quantises absmax values to 8 bits around a given offset, to reproduce a checkpoint.
    pub fn double_around(absmax: &[f32], offset: f32) -> Scales {
        let centred: Vec<f32> = absmax.iter().map(|a| a - offset).collect();
        let (codes, nested_absmax) = blockwise8::encode(&centred, DynamicMap::Signed, NESTED_BLOCK_SIZE);
        Scales::Double { codes, nested_absmax, offset }
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        match self {
            Scales::Plain(absmax) => absmax.len(),
            Scales::Double { codes, .. } => codes.len(),
        }
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The absmax of block `i`, decoded.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Scales::Plain(absmax) => absmax[i],
            Scales::Double { codes, nested_absmax, offset } => {
                let map = DynamicMap::Signed.values();
                map[usize::from(codes[i])] * nested_absmax[i / NESTED_BLOCK_SIZE] + offset
            }
        }
    }

    /// All absmax values, decoded.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        self.range(0, self.len())
    }

    /// `count` absmax values from block `first`, decoded; borrowed where they are plain.
    pub(crate) fn range(&self, first: usize, count: usize) -> Cow<'_, [f32]> {
        match self {
            Scales::Plain(absmax) => Cow::Borrowed(&absmax[first..first + count]),
            Scales::Double { codes, nested_absmax, offset } => {
                let map = DynamicMap::Signed.values();
                let codes = codes[first..first + count].iter().zip(first..);
                let decode =
                    |(&c, i): (&u8, usize)| map[usize::from(c)] * nested_absmax[i / NESTED_BLOCK_SIZE] + offset;
                Cow::Owned(codes.map(decode).collect())
            }
        }
    }

    /// Bytes that the values take.
    pub fn bytes(&self) -> usize {
        match self {
            Scales::Plain(absmax) => size_of_val(&absmax[..]),
            Scales::Double { codes, nested_absmax, .. } => {
                codes.len() + size_of_val(&nested_absmax[..]) + size_of::<f32>()
            }
        }
    }

    pub(crate) fn check(&self, op: &'static str, blocks: usize) -> Result<(), Error> {
        match self {
            Scales::Plain(absmax) => check_len(op, "absmax", blocks, absmax.len()),
            Scales::Double { codes, nested_absmax, .. } => {
                check_len(op, "absmax codes", blocks, codes.len())?;
                check_len(op, "nested absmax", blocks.div_ceil(NESTED_BLOCK_SIZE), nested_absmax.len())
            }
        }
    }
}

/// Eight running sums, so that the additions need not wait for each other; 0 if there is nothing.
fn mean(values: &[f32]) -> f32 {
    let mut sums = [0.0f64; 8];
    for group in values.chunks(8) {
        for (sum, &v) in sums.iter_mut().zip(group) {
            *sum += f64::from(v);
        }
    }
    if values.is_empty() { 0.0 } else { (sums.iter().sum::<f64>() / values.len() as f64) as f32 }
}
