//! Contents of buffers that wait in page-locked host memory: they leave on the copy stream while kernels run, and come back so.
//!
//! Nobody waits for either copy but the device itself. A buffer that leaves must not be written before its copy is done, so whoever lets
//! go of it first asks that later kernels wait ([`Stowed::before_compute`]); one that comes back is read behind [`Coming::arrive`].
//! The host's side needs no such care: only the copy stream touches it, in whose order one copy follows the other.

use std::fmt;
use std::sync::{Arc, PoisonError};

use crate::buffer::Buffer;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::pinned::Pinned;
use crate::stream::Event;

/// Bytes of a piece of host memory: all pieces are alike, so that any of them serves whatever leaves next.
const PIECE: usize = 16 << 20;

/// A piece of host memory; without memory on a device that is not there.
struct Piece(Option<Pinned>);

/// The pieces of a device, kept from step to step, since locking memory takes the system long.
#[derive(Default)]
pub(crate) struct Shelf {
    free: Vec<Piece>,
    made: usize,
}

impl Shelf {
    fn piece(&mut self, gpu: &Gpu) -> Result<Piece, Error> {
        if let Some(piece) = self.free.pop() {
            return Ok(piece);
        }
        let piece = match gpu.is_dry() {
            true => Piece(None),
            false => {
                let held = self.made * PIECE;
                let made = Pinned::new(gpu, PIECE);
                Piece(Some(made.map_err(|error| Error::HostMemory { asked: PIECE, held, source: Box::new(error) })?))
            }
        };
        self.made += 1;
        Ok(piece)
    }
}

/// What a buffer held, in host memory or on the way there.
pub struct Stowed {
    gpu: Arc<Gpu>,
    pieces: Vec<Piece>,
    bytes: usize,
    /// Behind the copy.
    left: Event,
}

/// A buffer whose contents are on their way back.
pub struct Coming {
    /// Absent when it was handed over.
    buffer: Option<Buffer>,
    arrived: Event,
}

impl Gpu {
    /// Starts to copy a buffer to host memory, behind all kernels asked for so far. The buffer must neither be written nor let go of
    /// before [`Stowed::before_compute`].
    ///
    /// # Errors
    /// [`Error::HostMemory`] if the system gives no page-locked memory; a call of the driver that fails.
    pub fn stow(self: &Arc<Gpu>, from: &Buffer) -> Result<Stowed, Error> {
        let mut stowed =
            Stowed { gpu: self.clone(), pieces: Vec::new(), bytes: from.bytes(), left: Event::untimed(self)? };
        {
            let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..from.bytes().div_ceil(PIECE) {
                stowed.pieces.push(shelf.piece(self)?);
            }
        }
        let copies = self.copy_stream();
        copies.wait_for_compute()?;
        for (i, piece) in stowed.pieces.iter_mut().enumerate() {
            let (at, bytes) = part(i, from.bytes());
            match &mut piece.0 {
                // SAFETY: the piece is on no shelf before the stream is asked to copy it back or the contents are given up, and who
                // gets it then asks the same stream; it is freed by a call that waits for everything that might use it.
                Some(pinned) => unsafe { copies.download(&mut pinned.as_mut_slice()[..bytes], from, at) }?,
                None => copies.pass(bytes),
            }
        }
        copies.record(&stowed.left)?;
        Ok(stowed)
    }

    /// Bytes of page-locked host memory that [`Gpu::stow`] took and keeps.
    pub fn stowable(&self) -> usize {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).made * PIECE
    }
}

/// Where in the buffer a piece begins, and how many bytes it has of it.
fn part(i: usize, bytes: usize) -> (usize, usize) {
    (i * PIECE, (bytes - i * PIECE).min(PIECE))
}

impl Stowed {
    /// Kernels that follow wait until the contents have left: then the buffer may be let go of.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn before_compute(&self) -> Result<(), Error> {
        self.gpu.compute_stream().wait_for(&self.left)
    }

    /// Starts to copy the contents to a new buffer.
    ///
    /// # Errors
    /// If the device has no memory left, or the driver's call fails.
    pub fn fetch(self) -> Result<Coming, Error> {
        let buffer = self.gpu.alloc(self.bytes)?;
        let mut coming = Coming { buffer: Some(buffer), arrived: Event::untimed(&self.gpu)? };
        let copies = self.gpu.copy_stream();
        // What had this memory before may still be at work with it.
        copies.wait_for_compute()?;
        let Some(buffer) = &mut coming.buffer else { unreachable!("put there above") };
        for (i, piece) in self.pieces.iter().enumerate() {
            let (at, bytes) = part(i, self.bytes);
            match &piece.0 {
                // SAFETY: as in `stow`.
                Some(pinned) => unsafe { copies.upload(buffer, at, &pinned.as_slice()[..bytes]) }?,
                None => copies.pass(bytes),
            }
        }
        copies.record(&coming.arrived)?;
        Ok(coming)
    }
}

impl Drop for Stowed {
    fn drop(&mut self) {
        self.gpu.shelf.lock().unwrap_or_else(PoisonError::into_inner).free.append(&mut self.pieces);
    }
}

impl Coming {
    /// The buffer. Kernels that follow wait until its contents are there.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn arrive(mut self) -> Result<Buffer, Error> {
        let Some(buffer) = self.buffer.take() else { unreachable!("handed over once") };
        buffer.gpu().compute_stream().wait_for(&self.arrived)?;
        Ok(buffer)
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        // The memory's next user must not meet the copy. Where even that cannot be asked for, the device has failed.
        if let Some(buffer) = &self.buffer
            && let Err(error) = buffer.gpu().compute_stream().wait_for(&self.arrived)
        {
            buffer.gpu().fault(error);
        }
    }
}

impl fmt::Debug for Stowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stowed({} bytes)", self.bytes)
    }
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coming({:?})", self.buffer)
    }
}
