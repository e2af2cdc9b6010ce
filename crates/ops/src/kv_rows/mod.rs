//! The rows of a cache of keys and values: new ones put where a layout says, and runs of old ones brought to another buffer.

mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    layout::Layout,
    place::{Cost, fill},
};
use halfbyte_autograd::Result;
use halfbyte_tensor::{Element, Error, Tensor, with_float};
use std::ops::Range;

/// Writes the keys and values `rows (tokens, channels)` of a layout's new tokens into the buffers `into (rows, channels)`, where
/// the layout's sequences have them: row `first_key + past` and on.
///
/// Fails if the rows do not fit the layout, or the layout does not fit the buffers.
pub fn append_rows(into: [&mut Tensor; 2], rows: [&Tensor; 2], layout: &Layout) -> Result<()> {
    check_rows(into.each_ref().map(|it| &**it), rows, layout)?;
    let cost = Cost::of(0, &[rows[0], rows[1], rows[0], rows[1]]);
    let host = |into: &mut [&mut Tensor; 2]| {
        for (into, rows) in into.iter_mut().zip(rows) {
            for it in layout.segments() {
                with_float!(
                    rows.dtype(),
                    T,
                    copy::<T>(into, it.first_key + it.past, rows, it.first..it.first + it.count)
                );
            }
        }
        Ok(())
    };
    fill(rows[0], cost, into, host, |gpu, [keys, values]| cuda::append(gpu, [keys, values], rows, layout))?;
    Ok(())
}

/// Refuses rows that do not fit the layout, and buffers that the layout does not fit.
pub(crate) fn check_rows(into: [&Tensor; 2], rows: [&Tensor; 2], layout: &Layout) -> Result<()> {
    for (into, rows) in into.iter().zip(rows) {
        check(into, rows)?;
        if rows.rows() != layout.tokens() || into.rows() < layout.key_rows() {
            let (tokens, needed) = (layout.tokens(), layout.key_rows());
            let expected = format!("{tokens} rows, one a token, and a buffer of at least {needed}");
            return Err(Error::shape("append_rows", expected, &[rows.rows(), into.rows()]).into());
        }
    }
    Ok(())
}

/// Rows that change their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where they are.
    pub from: Range<usize>,
    /// Where the first of them goes.
    pub to: usize,
}

/// Brings runs of rows of `from` into `into`, another buffer of its kind.
///
/// Fails if a run lies outside either, or a GPU reports an error.
pub fn move_rows(into: &mut Tensor, from: &Tensor, moves: &[Move]) -> Result<()> {
    check(into, from)?;
    let outside = |it: &&Move| it.from.end > from.rows() || it.to + it.from.len() > into.rows();
    if let Some(outside) = moves.iter().find(outside) {
        let message = format!("{outside:?} lies outside buffers of {} and {} rows", from.rows(), into.rows());
        return Err(Error::invalid("move_rows", message).into());
    }
    let cost = Cost::of(0, &[from, into]);
    let host = |into: &mut &mut Tensor| {
        for it in moves {
            with_float!(from.dtype(), T, copy::<T>(into, it.to, from, it.from.clone()));
        }
        Ok(())
    };
    fill(from, cost, into, host, |_, into| cuda::move_rows(into, from, moves))?;
    Ok(())
}

fn copy<T: Element>(into: &mut Tensor, at: usize, from: &Tensor, rows: Range<usize>) {
    let (c, len) = (from.cols(), rows.len() * from.cols());
    into.data_mut::<T>()[at * c..][..len].copy_from_slice(&from.data::<T>()[rows.start * c..][..len]);
}

fn check(into: &Tensor, rows: &Tensor) -> Result<()> {
    crate::product::check_float("cache rows", rows)?;
    let fits = |it: &Tensor| it.shape().len() == 2 && it.cols() == rows.cols() && it.dtype() == rows.dtype();
    if fits(rows) && fits(into) {
        return Ok(());
    }
    let expected = format!("a buffer (rows, {}) in {}", rows.shape().last().unwrap_or(&0), rows.dtype());
    Err(Error::shape("cache rows", expected, into.shape()).into())
}
