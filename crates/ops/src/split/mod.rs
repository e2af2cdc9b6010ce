//! Columns of a matrix as matrices of their own: queries, keys and values of a fused projection, gate and up of another.

mod cuda;
#[cfg(test)]
mod tests;

use crate::place::{Cost, fill};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Error, Float, Tensor, with_float};
use rayon::prelude::*;
use std::ops::Range;

/// Which columns: `count` runs of `width`, the first from `first` on, each `stride` behind the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first column.
    pub first: usize,
    /// Columns of a run.
    pub width: usize,
    /// From where a run begins to where the next does.
    pub stride: usize,
    /// Runs.
    pub count: usize,
}

impl Columns {
    /// One run.
    pub fn one(first: usize, width: usize) -> Columns {
        Columns { first, width, stride: width, count: 1 }
    }

    /// All columns.
    fn total(&self) -> usize {
        self.width * self.count
    }

    /// Behind the last one.
    fn end(&self) -> usize {
        self.first + self.count.saturating_sub(1) * self.stride + self.width
    }

    /// Every run: where it is in the piece, and where in the whole.
    fn runs(self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let Columns { first, width, stride, count } = self;
        (0..count).map(move |i| (i * width..(i + 1) * width, first + i * stride..first + i * stride + width))
    }
}

/// The columns of `x (rows, cols)` that each of `pieces` names, which do not overlap, as a matrix. Saves nothing.
///
/// # Errors
/// If `x` is no floating-point matrix, or a piece reaches beyond it.
pub fn split<const N: usize>(tape: &Tape<'_>, x: &Var, pieces: [Columns; N]) -> Result<[Var; N]> {
    let xv = x.value();
    crate::product::check_float("split", xv)?;
    let cols = if xv.shape().is_empty() { 0 } else { xv.cols() };
    if let Some(piece) = pieces.iter().find(|it| it.total() == 0 || it.end() > cols || it.stride < it.width) {
        return Err(Error::shape("split", format!("columns of a matrix for {piece:?}"), xv.shape()).into());
    }
    let ys = pieces.iter().map(|it| taken(xv, *it)).collect::<Result<_>>()?;
    let shape = xv.shape().to_vec();
    let ys = tape.record_many("split", &[x], ys, move |dys, _| Ok(vec![Some(joined(&dys, &pieces, &shape)?)]));
    ys.try_into().map_err(|_| unreachable!("as many outputs as pieces"))
}

fn taken(x: &Tensor, piece: Columns) -> Result<Tensor> {
    let y = x.scratch_like(&[x.rows(), piece.total()], x.dtype());
    let cost = Cost::of(0, &[&y, &y]);
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, {
            let rows = y.data_mut::<T>().par_chunks_mut(piece.total()).zip(x.data::<T>().par_chunks(x.cols()));
            rows.for_each(|(y, x)| piece.runs().for_each(|(part, whole)| y[part].copy_from_slice(&x[whole])));
        });
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::take(gpu, x, piece, y))
}

/// The gradient of the whole; zero where no piece has one.
fn joined(dys: &[Option<Tensor>], pieces: &[Columns], shape: &[usize]) -> Result<Tensor> {
    let Some(like) = dys.iter().flatten().next() else { unreachable!("some output has a gradient") };
    let covered: usize = dys.iter().zip(pieces).filter(|it| it.0.is_some()).map(|it| it.1.total()).sum();
    let mut dx = match covered == shape[shape.len() - 1] {
        true => like.scratch_like(shape, like.dtype()),
        false => Tensor::zeros_on(&like.device(), shape, like.dtype()),
    };
    for (dy, piece) in dys.iter().zip(pieces) {
        let Some(dy) = dy else { continue };
        let host = |dx: &mut Tensor| {
            with_float!(dy.dtype(), T, put::<T>(dy, *piece, dx));
            Ok(())
        };
        dx = fill(dy, Cost::of(0, &[dy, dy]), dx, host, |gpu, dx| cuda::put(gpu, dy, *piece, dx))?;
    }
    Ok(dx)
}

fn put<T: Float>(dy: &Tensor, piece: Columns, dx: &mut Tensor) {
    let cols = dx.cols();
    let rows = dx.data_mut::<T>().par_chunks_mut(cols).zip(dy.data::<T>().par_chunks(piece.total()));
    rows.for_each(|(dx, dy)| piece.runs().for_each(|(part, whole)| dx[whole].copy_from_slice(&dy[part])));
}
