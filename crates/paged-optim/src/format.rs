//! In which form a parameter's two moments are kept.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Elements of a block of 8-bit codes, as in bitsandbytes.
pub(crate) const BLOCK: usize = 256;

/// How the state of a parameter is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum StateFormat {
    /// Two f32 numbers an element: torch's AdamW.
    #[default]
    F32,
    /// Two bytes an element, by the dynamic maps of [`halfbyte_nf4::blockwise8`], with two absmax values for each 256
    /// elements: bitsandbytes' 8-bit AdamW, as its CUDA kernel computes it. A quarter of the memory.
    Blockwise8,
}

impl StateFormat {
    /// Parameters with fewer elements stay in f32 in bitsandbytes: they cost little and are often the touchy ones.
    pub const MIN_8BIT_SIZE: usize = 4096;

    /// Bytes of state of `len` elements.
    pub fn bytes(self, len: usize) -> usize {
        self.checked_bytes(len).unwrap_or(usize::MAX)
    }

    pub(crate) fn checked_bytes(self, len: usize) -> Option<usize> {
        match self {
            Self::F32 => len.checked_mul(8),
            Self::Blockwise8 => len.div_ceil(BLOCK).checked_mul(self.unit_bytes()),
        }
    }

    /// The smallest piece that can stand in a page of its own.
    pub(crate) fn unit_bytes(self) -> usize {
        match self {
            Self::F32 => 8,
            Self::Blockwise8 => 2 * BLOCK + 8,
        }
    }

    /// Elements whose state fits into so many bytes.
    pub(crate) fn elements(self, bytes: usize) -> usize {
        match self {
            Self::F32 => bytes / 8,
            Self::Blockwise8 => bytes / self.unit_bytes() * BLOCK,
        }
    }
}

/// Which of a parameter's state tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StatePart {
    /// The running mean of gradients: f32, or a byte an element.
    First,
    /// The running mean of squared gradients: f32, or a byte an element.
    Second,
    /// The first moment's largest magnitude, an f32 a block.
    FirstAbsmax,
    /// The second moment's largest, an f32 a block.
    SecondAbsmax,
}

impl StatePart {
    /// Those of a format, in the order in which they are visited.
    pub fn of(format: StateFormat) -> &'static [Self] {
        match format {
            StateFormat::F32 => &[Self::First, Self::Second],
            StateFormat::Blockwise8 => &[Self::First, Self::Second, Self::FirstAbsmax, Self::SecondAbsmax],
        }
    }

    /// Elements of this part for a parameter of `len` elements.
    pub fn len(self, len: usize) -> usize {
        if self.is_absmax() { len.div_ceil(BLOCK) } else { len }
    }

    /// Bytes of one of them.
    pub fn element_bytes(self, format: StateFormat) -> usize {
        if format == StateFormat::Blockwise8 && !self.is_absmax() { 1 } else { 4 }
    }

    pub(crate) fn is_absmax(self) -> bool {
        matches!(self, Self::FirstAbsmax | Self::SecondAbsmax)
    }
}

impl fmt::Display for StatePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first moment",
            Self::Second => "second moment",
            Self::FirstAbsmax => "absmax of the first moment",
            Self::SecondAbsmax => "absmax of the second moment",
        })
    }
}
