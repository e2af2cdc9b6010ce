//! Where a tensor lies, as an op sees it: the one question by which an op chooses its half.

use crate::{Tensor, ledger::Ledger, storage::Storage};
use halfbyte_cuda::Gpu;
use std::sync::Arc;

/// Where the elements of a tensor are.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In host memory, as a slice.
    Host,
    /// In the memory of a GPU.
    Gpu(&'a Arc<Gpu>),
    /// Nowhere: a dry run counts what they would take.
    Dry(&'a Arc<Ledger>),
}

impl Tensor {
    /// Where the elements are.
    pub fn place(&self) -> Place<'_> {
        match self.storage() {
            Storage::Cpu(_) => Place::Host,
            Storage::Cuda(buffer, _) => Place::Gpu(buffer.gpu()),
            Storage::Dry(it) => Place::Dry(it.ledger()),
        }
    }
}
