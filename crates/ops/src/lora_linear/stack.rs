//! How the updates of layers with one input lie beside each other on a GPU, so that one product serves all of them.

use super::saved::SavedLayer;
use crate::{
    few_rows::project,
    gpu_product::{
        Window,
        cuda::{Aside, stack},
    },
};
use halfbyte_tensor::{DType, Result, Tensor};

/// The columns of the projections, which are the rows of the stacked A.
pub(super) struct Stack {
    /// The first column and the rank of every layer that has an update.
    at: Vec<Option<(usize, usize)>>,
    /// All columns; a multiple of what tensor cores take at once, so that operands stay aligned.
    pub(super) width: usize,
}

impl Stack {
    pub(super) fn new(ranks: impl Iterator<Item = Option<usize>>) -> Stack {
        let mut width = 0;
        let at = ranks.map(|rank| {
            let first = width;
            width += rank.unwrap_or(0);
            rank.map(|rank| (first, rank))
        });
        let at = at.collect();
        Stack { at, width: width.next_multiple_of(8) }
    }

    pub(super) fn of(layers: &[SavedLayer<'_>]) -> Stack {
        Stack::new(layers.iter().map(|it| it.low_rank.as_ref().map(|it| it.rank)))
    }

    /// The first column and the rank of a layer that has an update.
    pub(super) fn place(&self, layer: usize) -> (usize, usize) {
        self.at[layer].expect("asked for layers with an update only")
    }

    /// A tensor over these columns for rows like those of `x`, zero unless every layer with an update writes its own.
    pub(super) fn columns_like(&self, x: &Tensor, written: usize) -> Tensor {
        if self.ranks() == self.width && written == self.at.iter().flatten().count() {
            return x.scratch_like(&[x.rows(), self.width], x.dtype());
        }
        Tensor::zeros_on(&x.device(), &[x.rows(), self.width], x.dtype())
    }

    /// Writes the layers' A, `(rank, columns)`, into a window of the stack's rows; rows of layers without one become zero. And something
    /// beside other rows.
    pub(super) fn put_rows(
        &self,
        factors: &[Option<&Tensor>],
        into: Window<'_>,
        aside: Option<Aside<'_>>,
    ) -> Result<()> {
        let rows = self.at.iter().zip(factors).filter_map(|(place, a)| place.map(|(_, rank)| (*a, rank)));
        stack(&rows.collect::<Vec<_>>(), into, aside)
    }

    /// The layers' A as one matrix, `(width, columns)` in `dtype`.
    pub(super) fn stacked(&self, factors: &[Option<&Tensor>], dtype: DType) -> Result<Tensor> {
        let some = factors.iter().flatten().next().expect("asked for where a layer has an update");
        let mut all = some.scratch_like(&[self.width, some.cols()], dtype);
        self.put_rows(factors, Window::whole(&mut all), None)?;
        Ok(all)
    }

    /// `x Aᵀ` of all layers, `(rows, width)`, for few rows of `x` and few layers.
    pub(super) fn projected(&self, x: &Tensor, factors: &[&Tensor]) -> Result<Tensor> {
        project(x, factors, self.width)
    }

    fn ranks(&self) -> usize {
        self.at.iter().flatten().map(|it| it.1).sum()
    }
}
