//! A flat batch as a rectangle, until models take sequences one after the other.

use halfbyte_data::{Batch, IGNORE};

/// Sequences filled up to the longest of them with id 0, which no layer looks at.
pub(crate) struct Padded {
    pub(crate) ids: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) time: usize,
}

pub(crate) fn padded(batch: &Batch) -> Padded {
    let time = batch.lengths.iter().copied().max().unwrap_or(0);
    let fill = |values: &[u32], with: u32| {
        let (mut out, mut rest) = (Vec::with_capacity(batch.lengths.len() * time), values);
        for (row, &length) in batch.lengths.iter().enumerate() {
            out.extend_from_slice(&rest[..length]);
            out.resize((row + 1) * time, with);
            rest = &rest[length..];
        }
        out
    };
    Padded { ids: fill(&batch.ids, 0), targets: fill(&batch.targets, IGNORE), time }
}
