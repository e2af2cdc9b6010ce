//! Page-locked host memory.

use std::ffi::c_void;
use std::fmt;

use cudarc::driver::result;

use crate::error::Error;
use crate::gpu::{Gpu, call};

/// Page-locked host memory, which copies reach without the processor's help.
pub struct Pinned {
    ptr: *mut u8,
    bytes: usize,
    /// Ordinary memory, for a device that is not there.
    dry: bool,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// So many bytes, zeroed.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Pinned, Error> {
        gpu.bind()?;
        if gpu.is_dry() {
            // Zeroed memory that nobody touches takes no room.
            // SAFETY: the layout has a size.
            let ptr = unsafe { std::alloc::alloc_zeroed(layout(bytes)) };
            assert!(!ptr.is_null(), "there is no address space left for {bytes} bytes");
            return Ok(Pinned { ptr, bytes, dry: true });
        }
        gpu.says_once("page-locked memory")?;
        // SAFETY: flags 0 mean ordinary cached memory.
        let ptr = call("cuMemHostAlloc", unsafe { result::malloc_host(bytes.max(1), 0) })?.cast::<u8>();
        // SAFETY: the driver gave so many bytes.
        unsafe { ptr.write_bytes(0, bytes) };
        Ok(Pinned { ptr, bytes, dry: false })
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The contents.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is initialised and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }

    /// The contents, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is held alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.dry {
            // SAFETY: allocated with this layout.
            return unsafe { std::alloc::dealloc(self.ptr, layout(self.bytes)) };
        }
        // SAFETY: allocated by the driver, and freed once. A failure could not be told to anyone.
        let _ = unsafe { result::free_host(self.ptr.cast::<c_void>()) };
    }
}

fn layout(bytes: usize) -> std::alloc::Layout {
    std::alloc::Layout::array::<u8>(bytes.max(1)).expect("no more than an address space")
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.bytes)
    }
}
