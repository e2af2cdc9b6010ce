//! Token ids on their way through the ops: looked through once on the host, uploaded once.

use crate::place::on_gpu;
use halfbyte_cuda::Gpu;
use halfbyte_tensor::{Device, Result, Tensor, cuda};
use std::sync::{Arc, OnceLock};

/// The target of a position that does not count.
pub const IGNORE: u32 = u32::MAX;

/// Token ids, one a row of the batch. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ids(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ids: Vec<u32>,
    largest: Option<u32>,
    on_gpu: OnceLock<Tensor>,
    groups: OnceLock<Groups>,
    groups_on_gpu: OnceLock<GroupsOnGpu>,
}

/// Rows by id, for sums over the rows of an id.
#[derive(Debug)]
pub(crate) struct Groups {
    /// All rows, those of one id together and in their order.
    pub(crate) order: Vec<u32>,
    /// Where each id's rows begin in `order`, and the end.
    pub(crate) starts: Vec<u32>,
    /// The ids that occur, ascending.
    pub(crate) ids: Vec<u32>,
}

/// The three lists of [`Groups`] on a GPU.
#[derive(Debug)]
pub(crate) struct GroupsOnGpu {
    pub(crate) order: Tensor,
    pub(crate) starts: Tensor,
    pub(crate) ids: Tensor,
}

impl Ids {
    /// Takes ids over. Each op checks them against its own vocabulary, by the largest of them.
    pub fn new(ids: Vec<u32>) -> Ids {
        let largest = ids.iter().copied().max();
        Ids(Arc::new(Inner {
            ids,
            largest,
            on_gpu: OnceLock::new(),
            groups: OnceLock::new(),
            groups_on_gpu: OnceLock::new(),
        }))
    }

    /// As [`new`](Self::new), for ids that lie on a GPU already: `there` (u32) holds the same.
    pub fn known(ids: Vec<u32>, there: &Tensor) -> Ids {
        let it = Ids::new(ids);
        if on_gpu(there) {
            let _ = it.0.on_gpu.set(there.clone());
        }
        it
    }

    /// The number of ids.
    pub fn len(&self) -> usize {
        self.0.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.ids.is_empty()
    }

    /// The ids.
    pub fn values(&self) -> &[u32] {
        &self.0.ids
    }

    /// The first id outside a vocabulary, and where it stands.
    pub(crate) fn outside(&self, vocab: usize) -> Option<(usize, u32)> {
        self.0.largest.filter(|it| *it as usize >= vocab)?;
        self.0.ids.iter().copied().enumerate().find(|it| it.1 as usize >= vocab)
    }

    /// Sends them to a device now, not when they are first needed there.
    ///
    /// # Errors
    /// If a GPU reports one.
    pub fn send(&self, device: &Device) -> Result<()> {
        if let Device::Cuda(gpu) = device {
            self.on(gpu)?;
        }
        Ok(())
    }

    pub(crate) fn on(&self, gpu: &Arc<Gpu>) -> Result<&Tensor> {
        once(&self.0.on_gpu, || cuda::upload_u32(gpu, &self.0.ids))
    }

    pub(crate) fn groups(&self) -> &Groups {
        self.0.groups.get_or_init(|| Groups::of(&self.0.ids))
    }

    pub(crate) fn groups_on(&self, gpu: &Arc<Gpu>) -> Result<&GroupsOnGpu> {
        once(&self.0.groups_on_gpu, || {
            let Groups { order, starts, ids } = self.groups();
            let up = |values: &[u32]| cuda::upload_u32(gpu, values);
            Ok(GroupsOnGpu { order: up(order)?, starts: up(starts)?, ids: up(ids)? })
        })
    }
}

impl Groups {
    fn of(ids: &[u32]) -> Groups {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|i| ids[*i as usize]);
        let (mut starts, mut found): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        for (at, i) in order.iter().enumerate() {
            let id = ids[*i as usize];
            if found.last() != Some(&id) {
                found.push(id);
                starts.push(at as u32);
            }
        }
        starts.push(ids.len() as u32);
        Groups { order, starts, ids: found }
    }
}

/// What each row of the batch is to predict: an id, or nothing ([`IGNORE`]). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Targets(Arc<TargetsInner>);

#[derive(Debug)]
struct TargetsInner {
    all: Vec<u32>,
    /// The rows that count, ascending.
    rows: Vec<u32>,
    /// Their targets.
    ids: Vec<u32>,
    on_gpu: OnceLock<(Tensor, Tensor)>,
}

impl Targets {
    /// Takes one target a row over.
    pub fn new(all: Vec<u32>) -> Targets {
        let rows: Vec<u32> = (0..all.len() as u32).filter(|i| all[*i as usize] != IGNORE).collect();
        let ids = rows.iter().map(|i| all[*i as usize]).collect();
        Targets(Arc::new(TargetsInner { all, rows, ids, on_gpu: OnceLock::new() }))
    }

    /// The number of rows, those that do not count included.
    pub fn len(&self) -> usize {
        self.0.all.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.0.all.is_empty()
    }

    /// The rows that count, ascending.
    pub fn rows(&self) -> &[u32] {
        &self.0.rows
    }

    /// The targets of [`Targets::rows`].
    pub fn ids(&self) -> &[u32] {
        &self.0.ids
    }

    /// Sends the rows that count and their targets to a device now, not when they are first needed there.
    ///
    /// # Errors
    /// If a GPU reports one.
    pub fn send(&self, device: &Device) -> Result<()> {
        if let Device::Cuda(gpu) = device {
            self.on(gpu)?;
        }
        Ok(())
    }

    /// [`Targets::rows`] and [`Targets::ids`] on a GPU, u32.
    pub(crate) fn on(&self, gpu: &Arc<Gpu>) -> Result<&(Tensor, Tensor)> {
        once(&self.0.on_gpu, || Ok((cuda::upload_u32(gpu, &self.0.rows)?, cuda::upload_u32(gpu, &self.0.ids)?)))
    }
}

/// What is in the cell, made first if nothing is. Two that come at once make the same, and one of it stays.
pub(crate) fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if cell.get().is_none() {
        let _ = cell.set(make()?);
    }
    match cell.get() {
        Some(it) => Ok(it),
        None => unreachable!("set above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_id_are_together_and_in_order() {
        let Groups { order, starts, ids } = Groups::of(&[5, 2, 5, 9, 2, 5]);
        assert_eq!(ids, [2, 5, 9]);
        assert_eq!(starts, [0, 2, 5, 6]);
        assert_eq!(order, [1, 4, 0, 2, 5, 3]);
        let ids = Ids::new(vec![5, 2, 9, 1]);
        assert_eq!((ids.outside(10), ids.outside(5)), (None, Some((0, 5))));
        assert_eq!((ids.len(), ids.is_empty(), ids.values()), (4, false, &[5, 2, 9, 1][..]));
        assert!(Ids::new(Vec::new()).is_empty());
    }

    #[test]
    fn targets_know_the_rows_that_count() {
        let it = Targets::new(vec![IGNORE, 3, IGNORE, 0]);
        assert_eq!((it.len(), it.rows(), it.ids()), (4, &[1, 3][..], &[3, 0][..]));
        assert!(!it.is_empty() && Targets::new(Vec::new()).is_empty());
    }
}
