//! What numbers a checkpoint may hold: none that AdamW cannot have left there, since a NaN would spread from where it stands
//! to all that is trained.

use halfbyte_paged_optim::{StateFormat, StatePart};
use std::fmt;

/// What numbers a tensor may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sound {
    /// Those of parameters and first moments.
    Finite,
    /// Those of second moments, which are means of squares, and largest absolute values.
    NotNegative,
    /// Codes of 8 bits, each of which means a number.
    Any,
}

impl Sound {
    /// Those of a part of a parameter's state.
    pub(super) fn of(part: StatePart, format: StateFormat) -> Sound {
        match (part, format) {
            (StatePart::First, StateFormat::F32) => Sound::Finite,
            (StatePart::Second, StateFormat::F32) => Sound::NotNegative,
            (StatePart::First | StatePart::Second, StateFormat::Blockwise8) => Sound::Any,
            (StatePart::FirstAbsmax | StatePart::SecondAbsmax, _) => Sound::NotNegative,
        }
    }

    /// The first number that is not sound, and its place among the numbers of `bytes`: whole little-endian f32, but for codes.
    pub(super) fn offence(self, bytes: &[u8]) -> Option<(usize, f32)> {
        let numbers = || bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).enumerate();
        match self {
            Sound::Finite => numbers().find(|it| !it.1.is_finite()),
            Sound::NotNegative => numbers().find(|it| !(it.1.is_finite() && it.1 >= 0.0)),
            Sound::Any => None,
        }
    }
}

impl fmt::Display for Sound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sound::Finite => "finite numbers",
            Sound::NotNegative => "finite numbers that are not negative",
            Sound::Any => "codes",
        })
    }
}
