//! Large buffers as ranges of pages, which the pool cuts as they are asked for.
//!
//! An allocator keeps what is freed in the middle of its heap. Where no two steps ask for the same sizes the pieces fit nothing, and
//! a process comes to hold twice what its tensors do.

use crate::{
    DType,
    mmap::{PAGE_BYTES, Range},
};
use bytemuck::Pod;

/// From so many bytes on a buffer has its own pages; what rounding up to whole ones adds is then 6 % at most, and of the larger buffers that
/// nearly all memory is in next to nothing.
const FROM_BYTES: usize = 64 << 10;

/// Pages that hold elements of a dtype, perhaps fewer than would fit.
#[derive(Debug)]
#[doc(hidden)]
pub struct Pages {
    range: Range,
    dtype: DType,
    bytes: usize,
}

/// Whether elements of so many bytes get pages of their own.
pub(crate) fn deserves_pages(bytes: usize) -> bool {
    bytes >= FROM_BYTES
}

/// What a buffer for so many bytes takes.
pub(crate) fn footprint(bytes: usize) -> usize {
    if deserves_pages(bytes) { bytes.next_multiple_of(PAGE_BYTES) } else { bytes }
}

impl Pages {
    /// Elements of `bytes` bytes in all, whose values are unspecified.
    ///
    /// # Panics
    /// If they do not fit.
    pub(crate) fn new(range: Range, dtype: DType, bytes: usize) -> Pages {
        assert!(bytes <= range.len(), "{bytes} bytes do not fit pages of {}", range.len());
        Pages { range, dtype, bytes }
    }

    /// The pages without what they hold.
    pub(crate) fn into_range(self) -> Range {
        self.range
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of all pages.
    pub(crate) fn held(&self) -> usize {
        self.range.len()
    }

    pub(crate) fn elements<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.range.bytes()[..self.bytes])
    }

    pub(crate) fn elements_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.range.bytes_mut()[..self.bytes])
    }
}
