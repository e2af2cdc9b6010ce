//! What was asked of a device, counted, so that a test can say what a step may cost.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often something was asked of a device since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels started.
    pub launches: u64,
    /// Passes started as a whole ([`crate::Gpu::repeated`]): their kernels and products are not counted again.
    pub graphs: u64,
    /// Matrix products started.
    pub products: u64,
    /// Shapes of products for which the library's algorithms were tried out.
    pub searches: u64,
    /// Floating-point operations of the products: two for each term of a sum.
    pub operations: u64,
    /// Bytes that kernels and products read and write, if each goes once over what it is given or as [`crate::Gpu::next_moves`] says;
    /// counted on a [dry](crate::Gpu::dry) device.
    pub bytes: u64,
    /// Copies from host memory, in calls of [`crate::Buffer::upload`].
    pub uploads: u64,
    /// Copies to host memory.
    pub downloads: u64,
    /// Their bytes.
    pub downloaded: u64,
    /// Times that the host waited for the device, for whatever reason.
    pub synchronisations: u64,
    /// Bytes that the copy stream moved between host memory and the device, either way.
    pub copied: u64,
    /// Picoseconds that kernels waited for the copy stream; on a [dry](crate::Gpu::dry) device, by its clock.
    pub waited: u64,
}

impl Counters {
    /// What was asked after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Counters) -> Counters {
        Counters {
            launches: self.launches - earlier.launches,
            graphs: self.graphs - earlier.graphs,
            products: self.products - earlier.products,
            searches: self.searches - earlier.searches,
            operations: self.operations - earlier.operations,
            bytes: self.bytes - earlier.bytes,
            uploads: self.uploads - earlier.uploads,
            downloads: self.downloads - earlier.downloads,
            downloaded: self.downloaded - earlier.downloaded,
            synchronisations: self.synchronisations - earlier.synchronisations,
            copied: self.copied - earlier.copied,
            waited: self.waited - earlier.waited,
        }
    }
}

/// The counters of an open device; each only grows.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) launches: AtomicU64,
    pub(crate) graphs: AtomicU64,
    pub(crate) products: AtomicU64,
    pub(crate) searches: AtomicU64,
    pub(crate) operations: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) uploads: AtomicU64,
    pub(crate) downloads: AtomicU64,
    pub(crate) downloaded: AtomicU64,
    pub(crate) synchronisations: AtomicU64,
    pub(crate) copied: AtomicU64,
    pub(crate) waited: AtomicU64,
}

impl Tally {
    pub(crate) fn read(&self) -> Counters {
        let of = |it: &AtomicU64| it.load(Ordering::Relaxed);
        Counters {
            launches: of(&self.launches),
            graphs: of(&self.graphs),
            products: of(&self.products),
            searches: of(&self.searches),
            operations: of(&self.operations),
            bytes: of(&self.bytes),
            uploads: of(&self.uploads),
            downloads: of(&self.downloads),
            downloaded: of(&self.downloaded),
            synchronisations: of(&self.synchronisations),
            copied: of(&self.copied),
            waited: of(&self.waited),
        }
    }
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
