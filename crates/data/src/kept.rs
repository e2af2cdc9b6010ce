//! What was made of rows, as bytes that can be kept and read again.

use std::{
    hash::Hasher as _,
    io::{Error, ErrorKind, Read, Result, Write},
};

use twox_hash::XxHash3_64;

use crate::dataset::Dataset;
use crate::tokenised::Tokenised;

/// Numbers are written in pieces of so many bytes.
const PIECE: usize = 1 << 16;

impl Tokenised {
    /// Raised whenever the bytes of [`write_to`](Self::write_to), or what is made of a row, change.
    pub const FORMAT: u32 = 1;

    /// Writes it for [`read_from`](Self::read_from).
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<()> {
        let report = serde_json::to_vec(&self.report)?;
        let (ids, mask, lengths) = self.dataset.raw();
        for number in [report.len(), lengths.len(), ids.len()] {
            out.write_all(&(number as u64).to_le_bytes())?;
        }
        out.write_all(&report)?;
        write(out, lengths.map(|it| (it as u64).to_le_bytes()))?;
        write(out, ids.iter().map(|it| it.to_le_bytes()))?;
        write(out, mask.iter().map(|it| it.to_le_bytes()))?;
        write(out, self.keys.iter().map(|it| it.to_le_bytes()))
    }

    /// Reads what [`write_to`](Self::write_to) wrote, which has so many bytes.
    ///
    /// # Errors
    /// Those of the reader, and bytes that contradict each other or their number.
    pub fn read_from(from: &mut dyn Read, bytes: u64) -> Result<Self> {
        let mut head = [0; 24];
        from.read_exact(&mut head)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|it| head[8 * at + it]));
        let (report, examples, ids) = (number(0), number(1), number(2));
        // Before anything is made room for.
        let sizes =
            [Some(24 + report.min(bytes)), examples.checked_mul(16), ids.checked_mul(4), Some(ids.div_ceil(64) * 8)];
        let total = sizes.iter().try_fold(0u64, |sum, it| sum.checked_add((*it)?));
        if total != Some(bytes) {
            return Err(wrong());
        }
        let mut text = vec![0; report as usize];
        from.read_exact(&mut text)?;
        let lengths = read(from, examples as usize, u64::from_le_bytes)?;
        let ids = read(from, ids as usize, u32::from_le_bytes)?;
        let mask = read(from, ids.len().div_ceil(64), u64::from_le_bytes)?;
        let keys = read(from, examples as usize, u64::from_le_bytes)?;
        let lengths =
            lengths.into_iter().map(|it| usize::try_from(it).map_err(|_| wrong())).collect::<Result<Vec<_>>>()?;
        let dataset = Dataset::from_raw(ids, mask, &lengths).ok_or_else(wrong)?;
        Ok(Self { dataset, report: serde_json::from_slice(&text)?, keys })
    }
}

impl Dataset {
    /// A number that hardly two data sets share: of all tokens, of which of them are predicted, and of the lengths of the rows.
    pub fn fingerprint(&self) -> u64 {
        struct Sum(XxHash3_64);
        impl Write for Sum {
            fn write(&mut self, bytes: &[u8]) -> Result<usize> {
                self.0.write(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> Result<()> {
                Ok(())
            }
        }
        let (mut sum, (ids, mask, lengths)) = (Sum(XxHash3_64::new()), self.raw());
        let all = write(&mut sum, lengths.map(|it| (it as u64).to_le_bytes()))
            .and_then(|()| write(&mut sum, ids.iter().map(|it| it.to_le_bytes())))
            .and_then(|()| write(&mut sum, mask.iter().map(|it| it.to_le_bytes())));
        all.expect("a sum takes all bytes");
        sum.0.finish()
    }
}

fn wrong() -> Error {
    Error::new(ErrorKind::InvalidData, "not what was written")
}

fn write<const N: usize>(out: &mut dyn Write, numbers: impl Iterator<Item = [u8; N]>) -> Result<()> {
    let mut piece = Vec::with_capacity(PIECE);
    for number in numbers {
        piece.extend_from_slice(&number);
        if piece.len() + N > PIECE {
            out.write_all(&piece)?;
            piece.clear();
        }
    }
    out.write_all(&piece)
}

fn read<T, const N: usize>(from: &mut dyn Read, count: usize, number: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
    let mut numbers = Vec::with_capacity(count);
    let mut piece = vec![0; PIECE / N * N];
    while numbers.len() < count {
        let piece = &mut piece[..(count - numbers.len()).min(PIECE / N) * N];
        from.read_exact(piece)?;
        numbers.extend(piece.chunks_exact(N).map(|it| number(std::array::from_fn(|at| it[at]))));
    }
    Ok(numbers)
}
