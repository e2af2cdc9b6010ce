//! A GPU that is in use: its context, streams and memory.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use crate::compile::Modules;
use crate::error::Error;
use crate::matmul::Blas;
use crate::{DeviceInfo, probe};

/// Sizes are rounded up to this, which is also how the driver aligns.
const GRAIN: usize = 512;

/// One GPU, opened for work. Everything on it happens in the order of one compute stream, but for copies that
/// [`Gpu::copy_stream`] makes beside it.
pub struct Gpu {
    info: DeviceInfo,
    context: sys::CUcontext,
    compute: sys::CUstream,
    copy: sys::CUstream,
    pool: Mutex<Pool>,
    pub(crate) modules: Mutex<Modules>,
    pub(crate) blas: Mutex<Option<Blas>>,
    fault: Mutex<Option<Error>>,
}

// SAFETY: the driver's handles may be used from any thread that has the context current, which every call here sees to;
// what is changed lies behind mutexes.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// Buffers that were given back, by size. Work is in stream order, so a buffer may be handed out again at once.
#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<sys::CUdeviceptr>>,
    stats: MemoryStats,
    /// Bytes that may be live, for tests of what happens when they are not enough.
    limit: Option<usize>,
}

/// Bytes on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In buffers that exist now.
    pub live: usize,
    /// The most that `live` has been.
    pub peak: usize,
    /// Kept for reuse.
    pub cached: usize,
}

impl Gpu {
    /// Opens a device by its number in the driver's order.
    ///
    /// # Errors
    /// What [`crate::Probe::require`] reports, a device that does not exist, or a call of the driver that fails.
    pub fn open(ordinal: u32) -> Result<Arc<Gpu>, Error> {
        let found = probe();
        let devices = found.require()?;
        let info = devices.iter().find(|it| it.ordinal == ordinal).cloned();
        let info = info.ok_or(Error::NoSuchDevice { ordinal, count: devices.len() })?;
        crate::symbols::check()?;
        let device = call("cuDeviceGet", result::device::get(ordinal.cast_signed()))?;
        // SAFETY: the device is the driver's own; the context is retained for the life of the process.
        let context = call("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        // SAFETY: the context is alive.
        call("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) })?;
        let stream = || call("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking));
        Ok(Arc::new(Gpu {
            info,
            context,
            compute: stream()?,
            copy: stream()?,
            pool: Mutex::default(),
            modules: Mutex::default(),
            blas: Mutex::new(None),
            fault: Mutex::new(None),
        }))
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Free and total bytes, as the driver sees them.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        self.bind()?;
        call("cuMemGetInfo", result::mem_get_info())
    }

    /// Bytes of buffers.
    pub fn stats(&self) -> MemoryStats {
        self.pool().stats
    }

    /// Lets [`Gpu::alloc`] fail where more than so many bytes would be live, as a smaller device would.
    pub fn limit_memory(&self, bytes: Option<usize>) {
        self.pool().limit = bytes;
    }

    /// A buffer of unspecified contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the device has no such piece left, also after giving back what is kept for reuse.
    pub fn alloc(self: &Arc<Gpu>, bytes: usize) -> Result<Buffer, Error> {
        let size = bytes.max(1).next_multiple_of(GRAIN);
        let mut pool = self.pool();
        let out_of_memory = |stats: MemoryStats| Error::OutOfMemory { asked: bytes, live: stats.live };
        if pool.limit.is_some_and(|limit| pool.stats.live + size > limit) {
            return Err(out_of_memory(pool.stats));
        }
        let recycled = pool.free.get_mut(&size).and_then(Vec::pop);
        let ptr = match recycled {
            Some(ptr) => {
                pool.stats.cached -= size;
                ptr
            }
            None => {
                self.bind()?;
                match self.fresh(size) {
                    Ok(ptr) => ptr,
                    Err(_) => {
                        self.trim(&mut pool)?;
                        self.fresh(size).map_err(|_| out_of_memory(pool.stats))?
                    }
                }
            }
        };
        pool.stats.live += size;
        pool.stats.peak = pool.stats.peak.max(pool.stats.live);
        drop(pool);
        Ok(Buffer { gpu: self.clone(), ptr, bytes, size })
    }

    /// The same for where no error can be returned: if there is no memory, the buffer leads nowhere, and the next thing that
    /// is asked of the device fails with the reason.
    pub fn alloc_or_fault(self: &Arc<Gpu>, bytes: usize) -> Buffer {
        self.alloc(bytes).unwrap_or_else(|error| {
            self.fault(error);
            Buffer { gpu: self.clone(), ptr: 0, bytes, size: 0 }
        })
    }

    /// Lets everything that is asked of the device from now on fail with this error, unless there is an earlier one.
    pub fn fault(&self, error: Error) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// # Errors
    /// The first error that could not be returned where it happened.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Forgets a fault, for a caller who freed memory and goes on.
    pub fn clear_fault(&self) -> Option<Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fresh(&self, size: usize) -> Result<sys::CUdeviceptr, Error> {
        // SAFETY: the stream is alive, and the memory is used in its order.
        call("cuMemAllocAsync", unsafe { result::malloc_async(self.compute, size) })
    }

    /// Gives everything that is kept for reuse back to the driver.
    fn trim(&self, pool: &mut Pool) -> Result<(), Error> {
        for ptr in std::mem::take(&mut pool.free).into_values().flatten() {
            // SAFETY: nobody holds the buffer, and what used it comes before in the stream.
            call("cuMemFreeAsync", unsafe { result::free_async(ptr, self.compute) })?;
        }
        pool.stats.cached = 0;
        self.synchronize()
    }

    /// Waits until everything that was asked of the compute stream is done; reports what went wrong meanwhile.
    ///
    /// # Errors
    /// The first failure of a kernel or copy.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the stream is alive.
        call("cuStreamSynchronize", unsafe { result::stream::synchronize(self.compute) })
    }

    /// The stream on which kernels and products run.
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.compute
    }

    /// The stream for copies that go on beside the kernels.
    pub fn copy_stream(&self) -> CopyStream<'_> {
        CopyStream { gpu: self, stream: self.copy }
    }

    /// Makes the context current on this thread, unless there is a fault: every call to the device comes through here.
    pub(crate) fn bind(&self) -> Result<(), Error> {
        self.check()?;
        // SAFETY: the context is alive as long as the process.
        call("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.info)
    }
}

/// Bytes on a device, given back to its pool when dropped.
pub struct Buffer {
    gpu: Arc<Gpu>,
    ptr: sys::CUdeviceptr,
    bytes: usize,
    size: usize,
}

impl Buffer {
    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Its address on the device, for kernels.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fills it from host memory of the same length; the source may be reused at once.
    ///
    /// # Errors
    /// If the driver's call fails.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload(&mut self, from: &[u8]) -> Result<(), Error> {
        assert_eq!(from.len(), self.bytes, "an upload fills its buffer");
        if from.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: both sides have this length, and the wait keeps the source alive until it was read.
        call("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(self.ptr, from, self.gpu.compute) })?;
        self.gpu.synchronize()
    }

    /// Copies it to host memory of the same length, after everything that was asked before.
    ///
    /// # Errors
    /// If the driver's call or an earlier kernel failed.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn download(&self, into: &mut [u8]) -> Result<(), Error> {
        assert_eq!(into.len(), self.bytes, "a download takes the whole buffer");
        if into.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: both sides have this length, and the wait keeps the target alive until it was written.
        call("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(into, self.ptr, self.gpu.compute) })?;
        self.gpu.synchronize()
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
        let (to, from) = (self.ptr + at as u64, from.ptr + from_at as u64);
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
        // SAFETY: the range is the buffer.
        call("cuMemsetD8Async", unsafe { result::memset_d8_async(self.ptr, 0, self.bytes, self.gpu.compute) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.ptr == 0 {
            return;
        }
        let mut pool = self.gpu.pool();
        pool.stats.live -= self.size;
        pool.stats.cached += self.size;
        pool.free.entry(self.size).or_default().push(self.ptr);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes on cuda:{})", self.bytes, self.gpu.info.ordinal)
    }
}

/// Page-locked host memory, which copies reach without the processor's help.
pub struct Pinned {
    ptr: *mut u8,
    bytes: usize,
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
        // SAFETY: flags 0 mean ordinary cached memory.
        let ptr = call("cuMemHostAlloc", unsafe { result::malloc_host(bytes.max(1), 0) })?.cast::<u8>();
        // SAFETY: the driver gave so many bytes.
        unsafe { ptr.write_bytes(0, bytes) };
        Ok(Pinned { ptr, bytes })
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
        // SAFETY: allocated by the driver, and freed once. A failure could not be told to anyone.
        let _ = unsafe { result::free_host(self.ptr.cast::<c_void>()) };
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.bytes)
    }
}

/// Copies beside the kernels, in an order of their own; [`CopyStream::wait_for_compute`] and
/// [`CopyStream::before_compute`] say where the two orders meet.
pub struct CopyStream<'g> {
    gpu: &'g Gpu,
    stream: sys::CUstream,
}

impl CopyStream<'_> {
    /// Copies that follow wait until all kernels asked for so far are done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn wait_for_compute(&self) -> Result<(), Error> {
        self.order(self.gpu.compute, self.stream)
    }

    /// Kernels that follow wait until all copies asked for so far are done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn before_compute(&self) -> Result<(), Error> {
        self.order(self.stream, self.gpu.compute)
    }

    fn order(&self, first: sys::CUstream, then: sys::CUstream) -> Result<(), Error> {
        self.gpu.bind()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = call("cuEventCreate", result::event::create(flags))?;
        // SAFETY: event and streams are alive; the driver keeps a destroyed event until nobody waits for it.
        unsafe {
            call("cuEventRecord", result::event::record(event, first))?;
            let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            call("cuStreamWaitEvent", result::stream::wait_event(then, event, wait))?;
            call("cuEventDestroy", result::event::destroy(event))
        }
    }

    /// Copies a part of page-locked memory to a buffer's byte `at`.
    ///
    /// # Safety
    /// `from` must not be changed or freed until the copy is done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub unsafe fn upload(&self, to: &mut Buffer, at: usize, from: &[u8]) -> Result<(), Error> {
        assert!(at + from.len() <= to.bytes, "a copy stays within its buffer");
        self.gpu.bind()?;
        // SAFETY: the range lies in the buffer, and the caller keeps the source.
        call("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to.ptr + at as u64, from, self.stream) })
    }

    /// Copies a buffer's bytes from `at` on to page-locked memory.
    ///
    /// # Safety
    /// `into` must not be read, changed or freed until the copy is done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub unsafe fn download(&self, into: &mut [u8], from: &Buffer, at: usize) -> Result<(), Error> {
        assert!(at + into.len() <= from.bytes, "a copy stays within its buffer");
        self.gpu.bind()?;
        // SAFETY: the range lies in the buffer, and the caller keeps the target.
        call("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(into, from.ptr + at as u64, self.stream) })
    }

    /// Sets bytes of a buffer to zero.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn zero(&self, buffer: &mut Buffer, at: usize, bytes: usize) -> Result<(), Error> {
        assert!(at + bytes <= buffer.bytes, "what is cleared lies within its buffer");
        self.gpu.bind()?;
        // SAFETY: the range lies in the buffer.
        call("cuMemsetD8Async", unsafe { result::memset_d8_async(buffer.ptr + at as u64, 0, bytes, self.stream) })
    }

    /// Waits until all copies are done.
    ///
    /// # Errors
    /// If one failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.gpu.bind()?;
        // SAFETY: the stream is alive.
        call("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream) })
    }
}

/// Gives a failed call its name.
pub(crate) fn call<T>(call: &'static str, result: Result<T, result::DriverError>) -> Result<T, Error> {
    result.map_err(|e| Error::Call {
        call,
        name: e.error_name().map_or_else(|_| "an unnamed error".into(), |it| it.to_string_lossy().into_owned()),
        code: e.0 as i32,
    })
}
