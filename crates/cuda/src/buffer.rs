//! Bytes on a device, and the copies to and from it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::result;

use crate::counters::count;
use crate::error::Error;
use crate::gpu::{Gpu, call};
use crate::pool::Block;
use crate::ring::PIECE;
use crate::stream::Which;

/// Bytes on a device, given back to its pool when dropped.
pub struct Buffer {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) held: Held,
    pub(crate) bytes: usize,
}

/// A part of a buffer: [`Buffer::shared_out`].
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Its first byte.
    pub at: usize,
    /// From there to its last.
    pub bytes: usize,
    /// Those among them that are not another part's.
    pub own: usize,
}

/// Where a buffer's bytes are.
pub(crate) enum Held {
    /// In a block of its own; absent where there was no memory for it.
    Own(Option<Block>),
    /// In another buffer, from so many bytes on.
    Within(Arc<Buffer>, usize),
}

impl Buffer {
    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Its address on the device, for kernels.
    pub fn ptr(&self) -> u64 {
        match &self.held {
            Held::Own(block) => block.map_or(0, |it| it.ptr),
            Held::Within(whole, at) => match whole.ptr() {
                0 => 0,
                ptr => ptr + *at as u64,
            },
        }
    }

    /// Several buffers in place of this one. Rows of it may be rows of several of them: that each keeps to its own columns is up to whoever
    /// holds it. The memory goes back to the pool with the last.
    ///
    /// # Panics
    /// If one would reach beyond the end.
    pub fn shared_out(self, parts: &[Share]) -> Vec<Buffer> {
        let whole = Arc::new(self);
        let part = |it: &Share| {
            assert!(it.at + it.bytes <= whole.bytes, "a part lies within its buffer");
            let part = Buffer { gpu: whole.gpu.clone(), held: Held::Within(whole.clone(), it.at), bytes: it.bytes };
            if let Some(dry) = &part.gpu.dry {
                dry.hold(part.ptr(), it.own);
            }
            part
        };
        parts.iter().map(part).collect()
    }

    /// Whether both are parts of one buffer.
    pub fn shares_rows_with(&self, other: &Buffer) -> bool {
        match (&self.held, &other.held) {
            (Held::Within(a, _), Held::Within(b, _)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fills it from host memory of the same length, which may be reused at once: what is read after this is what was given. Does
    /// not wait for the device, unless it is [behind](crate::Counters::synchronisations) by more than the memory set aside for that.
    ///
    /// # Errors
    /// If the driver's call fails.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload(&mut self, from: &[u8]) -> Result<(), Error> {
        assert_eq!(from.len(), self.bytes, "an upload fills its buffer");
        self.fill(|at, piece| {
            piece.copy_from_slice(&from[at..at + piece.len()]);
            Ok(())
        })
    }

    /// Fills it with what `fill` writes, piece by piece: it is told at which byte of the buffer a piece begins. A piece lies in page-locked
    /// memory and is on its way to the device while the next is written, so that nothing is copied in host memory. Waits as
    /// [`upload`](Self::upload) does. `fill` asks nothing of the device.
    ///
    /// # Errors
    /// What `fill` reports, after which the contents are unknown; and if the driver's call fails.
    pub fn fill<E: From<Error>>(&mut self, mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>) -> Result<(), E> {
        if self.bytes == 0 {
            return Ok(());
        }
        let gpu = self.gpu.clone();
        gpu.bind()?;
        count(&gpu.tally.uploads);
        for at in (0..self.bytes).step_by(PIECE) {
            let to = self.ptr() + at as u64;
            gpu.send(
                PIECE.min(self.bytes - at),
                |piece| fill(at, piece),
                |pinned| {
                    // SAFETY: the range lies in this buffer, and the ring keeps its piece until the copy is done.
                    call("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, pinned, gpu.compute) })
                },
            )?;
        }
        Ok(())
    }

    /// Copies it to host memory of the same length, after everything that was asked before. Waits for it.
    ///
    /// # Errors
    /// If the driver's call or an earlier kernel failed.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn download(&self, into: &mut [u8]) -> Result<(), Error> {
        assert_eq!(into.len(), self.bytes, "a download takes the whole buffer");
        self.gpu.download(&mut [(self, into)])
    }

    /// Copies `bytes` from another buffer's byte `from_at` to this one's byte `at`.
    ///
    /// # Errors
    /// If the driver's call fails.
    ///
    /// # Panics
    /// If a range reaches beyond its buffer.
    pub fn copy_from(&mut self, at: usize, from: &Buffer, from_at: usize, bytes: usize) -> Result<(), Error> {
        assert!(at + bytes <= self.bytes && from_at + bytes <= from.bytes, "a copy stays within both buffers");
        if bytes == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        if let Some(dry) = &self.gpu.dry {
            dry.pass_bytes(Which::Compute, 2 * bytes as u64);
            return Ok(());
        }
        let (to, from) = (self.ptr() + at as u64, from.ptr() + from_at as u64);
        if !self.gpu.says(("copy", to, from, bytes))? {
            return Ok(());
        }
        // SAFETY: both ranges lie in live buffers, which are used in the order of this stream.
        call("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to, from, bytes, self.gpu.compute) })
    }

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn zero(&mut self) -> Result<(), Error> {
        if self.bytes == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        if let Some(dry) = &self.gpu.dry {
            dry.pass_bytes(Which::Compute, self.bytes as u64);
            return Ok(());
        }
        if !self.gpu.says(("zero", self.ptr(), self.bytes))? {
            return Ok(());
        }
        // SAFETY: the range is the buffer.
        call("cuMemsetD8Async", unsafe { result::memset_d8_async(self.ptr(), 0, self.bytes, self.gpu.compute) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.held {
            Held::Own(Some(block)) => self.gpu.give_back(*block),
            Held::Own(None) => {}
            Held::Within(..) => {
                if let Some(dry) = &self.gpu.dry {
                    dry.forget(self.ptr());
                }
            }
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes on cuda:{})", self.bytes, self.gpu.info().ordinal)
    }
}

impl Gpu {
    /// Copies buffers to host memory of their lengths, after everything that was asked before: one wait for all of them.
    ///
    /// # Errors
    /// If the driver's call or an earlier kernel failed.
    ///
    /// # Panics
    /// If a length differs from its buffer's.
    pub fn download(&self, copies: &mut [(&Buffer, &mut [u8])]) -> Result<(), Error> {
        self.bind()?;
        self.says_once("a download")?;
        for (from, into) in copies.iter_mut() {
            assert_eq!(into.len(), from.bytes, "a download takes the whole buffer");
            if into.is_empty() {
                continue;
            }
            count(&self.tally.downloads);
            self.tally.downloaded.fetch_add(into.len() as u64, Ordering::Relaxed);
            if self.is_dry() {
                into.fill(0);
                continue;
            }
            // SAFETY: both sides have this length, and the wait keeps the target alive until it was written.
            call("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(into, from.ptr(), self.compute) })?;
        }
        self.synchronize()
    }
}
