//! Rows of a batch dealt out to groups, and put together again: where the sequences of a batch take different weights, each group
//! goes its own way as a batch of its own.

#[cfg(test)]
mod tests;

use crate::{
    Layout,
    place::{Cost, fill},
};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Tensor, cuda, with_float};
use std::{ops::Range, sync::Arc};

/// Which rows belong together. Every row belongs to one group, in which the rows keep their order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RowGroups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Of each group the rows of its sequences.
    groups: Vec<Vec<Range<usize>>>,
    rows: usize,
}

impl RowGroups {
    /// Groups the sequences of a layout: `of_sequence[i]` is the group of sequence i, counted from zero.
    ///
    /// # Panics
    /// If there are not as many numbers as sequences.
    pub fn new(layout: &Layout, of_sequence: impl ExactSizeIterator<Item = usize>) -> RowGroups {
        assert_eq!(of_sequence.len(), layout.sequences(), "every sequence belongs to one group");
        let mut groups: Vec<Vec<Range<usize>>> = Vec::new();
        for (segment, group) in layout.segments().iter().zip(of_sequence) {
            groups.resize_with(groups.len().max(group + 1), Vec::new);
            groups[group].push(segment.first..segment.first + segment.count);
        }
        RowGroups(Arc::new(Inner { groups, rows: layout.tokens() }))
    }

    /// The number of groups.
    pub fn count(&self) -> usize {
        self.0.groups.len()
    }

    /// The rows of a group, sequence by sequence.
    pub fn rows(&self, group: usize) -> &[Range<usize>] {
        &self.0.groups[group]
    }

    /// How many rows a group has.
    pub fn size(&self, group: usize) -> usize {
        self.0.groups[group].iter().map(Range::len).sum()
    }
}

/// The rows of `x (rows, channels)` that belong to each group, in its dtype.
pub fn deal_rows(tape: &Tape<'_>, x: &Var, groups: &RowGroups) -> Result<Vec<Var>> {
    assert_eq!(x.value().rows(), groups.0.rows, "the groups are those of this batch");
    let ys: Vec<Tensor> = (0..groups.count()).map(|it| taken(x.value(), groups, it)).collect::<Result<_>>()?;
    let (groups, shape) = (groups.clone(), x.value().shape().to_vec());
    Ok(tape.record_many("rows", &[x], ys, move |dys, _| {
        let dys: Vec<Option<&Tensor>> = dys.iter().map(Option::as_ref).collect();
        Ok(vec![Some(gathered(&dys, &groups)?.reshape(&shape)?)])
    }))
}

/// The inverse: the rows of all groups in the batch's order.
pub fn gather_rows(tape: &Tape<'_>, parts: &[Var], groups: &RowGroups) -> Result<Var> {
    assert_eq!(parts.len(), groups.count(), "a part for every group");
    let values: Vec<Option<&Tensor>> = parts.iter().map(|it| Some(it.value())).collect();
    let y = gathered(&values, groups)?;
    let (groups, parents) = (groups.clone(), parts.iter().collect::<Vec<_>>());
    let shapes: Vec<Vec<usize>> = parts.iter().map(|it| it.value().shape().to_vec()).collect();
    let backward = move |mut dys: Vec<Option<Tensor>>, needs: &[bool]| {
        let Some(Some(dy)) = dys.pop() else { unreachable!("rows: one output that has a gradient") };
        let one = |(group, need): (usize, &bool)| {
            let part = need.then(|| taken(&dy, &groups, group)).transpose()?;
            Ok(part.map(|it| it.reshape(&shapes[group])).transpose()?)
        };
        needs.iter().enumerate().map(one).collect()
    };
    let mut vars = tape.record_many("rows", &parents, vec![y], backward);
    Ok(vars.pop().unwrap_or_else(|| unreachable!("rows: one output, one variable")))
}

/// The rows of one group.
fn taken(x: &Tensor, groups: &RowGroups, group: usize) -> Result<Tensor> {
    let y = x.scratch_like(&[groups.size(group), x.cols()], x.dtype());
    let mut moves = Vec::new();
    let mut at = 0;
    for rows in groups.rows(group) {
        moves.push(Move { to: at, from: rows.start, count: rows.len() });
        at += rows.len();
    }
    moved(x, y, &moves)
}

/// The rows of all groups in the batch's order; zeros where a group has none.
fn gathered(parts: &[Option<&Tensor>], groups: &RowGroups) -> Result<Tensor> {
    let Some(like) = parts.iter().flatten().next() else { unreachable!("rows: some part is there") };
    let shape = [groups.0.rows, like.cols()];
    let mut y = if parts.iter().all(Option::is_some) {
        like.scratch_like(&shape, like.dtype())
    } else {
        Tensor::zeros_on(&like.device(), &shape, like.dtype())
    };
    for (group, part) in parts.iter().enumerate() {
        let Some(part) = part else { continue };
        let mut at = 0;
        let one = |rows: &Range<usize>| {
            at += rows.len();
            Move { to: rows.start, from: at - rows.len(), count: rows.len() }
        };
        y = moved(part, y, &groups.rows(group).iter().map(one).collect::<Vec<_>>())?;
    }
    Ok(y)
}

/// Rows that lie together in both tensors.
struct Move {
    to: usize,
    from: usize,
    count: usize,
}

fn moved(from: &Tensor, to: Tensor, moves: &[Move]) -> Result<Tensor> {
    let channels = from.cols();
    let host = |to: &mut Tensor| {
        with_float!(from.dtype(), T, {
            let (from, to) = (from.data::<T>(), to.data_mut::<T>());
            for it in moves {
                let len = it.count * channels;
                to[it.to * channels..][..len].copy_from_slice(&from[it.from * channels..][..len]);
            }
        });
        Ok(())
    };
    let cost = Cost::of(0, &[from, from]);
    fill(from, cost, to, host, |_, to| {
        moves.iter().try_for_each(|it| cuda::copy_rows(to, it.to, from, it.from, it.count))
    })
}
