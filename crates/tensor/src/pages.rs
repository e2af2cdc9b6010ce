//! Large buffers as pages of their own, which go back to the system whole.
//!
//! An allocator keeps what is freed in the middle of its heap. Where no two steps ask for the same sizes the pieces fit nothing, and
//! a process comes to hold twice what its tensors do.

use crate::DType;
use bytemuck::Pod;
use memmap2::MmapMut;
use std::alloc::{Layout, handle_alloc_error};

/// From so many bytes on a buffer has its own pages; what rounding up to whole ones adds is then 1.6 % at most.
const FROM_BYTES: usize = 256 << 10;
const PAGE_BYTES: usize = 4096;

/// Pages that hold elements of a dtype, perhaps fewer than would fit.
#[derive(Debug)]
#[doc(hidden)]
pub struct Pages {
    map: MmapMut,
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
    /// Pages for elements of `bytes` bytes in all, which are zero.
    pub(crate) fn new(dtype: DType, bytes: usize) -> Pages {
        let held = footprint(bytes);
        let map = MmapMut::map_anon(held).unwrap_or_else(|_| {
            // What a vector does that gets no memory: the program's allocator may have something to say.
            drop(Vec::<u8>::with_capacity(held));
            handle_alloc_error(Layout::array::<u8>(held).expect("a size that was asked for is a size"))
        });
        Pages { map, dtype, bytes }
    }

    /// Other elements, of unspecified values, in the same pages.
    ///
    /// # Panics
    /// If they do not fit.
    pub(crate) fn reuse(&mut self, dtype: DType, bytes: usize) {
        assert!(bytes <= self.map.len(), "{bytes} bytes do not fit pages of {}", self.map.len());
        (self.dtype, self.bytes) = (dtype, bytes);
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of all pages.
    pub(crate) fn held(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn elements<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[..self.bytes])
    }

    pub(crate) fn elements_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.bytes])
    }
}
