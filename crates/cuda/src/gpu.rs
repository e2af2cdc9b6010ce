//! A GPU that is in use: its context, streams and memory.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use crate::algorithms::Measuring;
use crate::buffer::{Buffer, Held};
use crate::counters::{Counters, Tally};
use crate::dry::{Booked, Dry, Rates};
use crate::error::Error;
use crate::launch::Modules;
use crate::matmul::Blas;
use crate::pool::{Block, MemoryStats, Pool, Purpose};
use crate::repeat::Repeats;
use crate::ring::Ring;
use crate::script::Script;
use crate::stowed::Shelf;
use crate::{DeviceInfo, probe};

/// One GPU, opened for work. Everything on it happens in the order of one compute stream, but for copies that
/// [`Gpu::copy_stream`] makes beside it, and kernels that are started [`Gpu::beside`] it.
pub struct Gpu {
    info: DeviceInfo,
    context: sys::CUcontext,
    pub(crate) compute: sys::CUstream,
    /// Whether a kernel may be started while the one before it runs out.
    pub(crate) overlaps: bool,
    pub(crate) copy: sys::CUstream,
    pub(crate) side: sys::CUstream,
    /// Whether anybody should start kernels on that.
    works_ahead: bool,
    /// Whether blocks of a kernel may wait for each other.
    takes_turns: bool,
    /// Bytes of shared memory that a block may have.
    shared_memory: u32,
    pool: Mutex<Pool>,
    /// Bytes that may be live, for tests of what happens when they are not enough.
    limit: Mutex<Option<usize>>,
    ring: Mutex<Option<Ring>>,
    pub(crate) shelf: Mutex<Shelf>,
    pub(crate) tally: Tally,
    pub(crate) modules: Mutex<Modules>,
    pub(crate) blas: Mutex<Option<Blas>>,
    pub(crate) measuring: Mutex<Measuring>,
    fault: Mutex<Option<Error>>,
    /// Whether passes that come again may be started as a whole.
    pub(crate) repeats: bool,
    pub(crate) repeating: Mutex<Repeats>,
    /// The pass under way, and whether there is one.
    pub(crate) script: Mutex<Option<Script>>,
    pub(crate) scripted: AtomicBool,
    /// What a crate above keeps for the device.
    attached: Mutex<Option<Box<dyn Any + Send>>>,
    /// There is no device behind it.
    pub(crate) dry: Option<Dry>,
}

// SAFETY: the driver's handles may be used from any thread that has the context current, which every call here sees to;
// what is changed lies behind mutexes.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Lets the library's algorithms be tried out for products of so many floating-point operations and more, which is otherwise done
    /// from 2^28 on; and whether what is found out is kept on disk, as it otherwise is.
    pub fn measure_products(&self, from: u64, kept: bool) {
        *self.measuring.lock().unwrap_or_else(PoisonError::into_inner) = Measuring { from, kept };
    }

    /// Opens a device by its number in the driver's order. Each opening has streams, memory and loaded kernels of its own.
    ///
    /// # Errors
    /// What [`crate::Probe::require`] reports, a device that does not exist, or a call of the driver that fails.
    pub fn open(ordinal: u32) -> Result<Arc<Gpu>, Error> {
        let found = probe();
        let devices = found.require()?;
        let info = devices.iter().find(|it| it.ordinal == ordinal).cloned();
        let info = info.ok_or_else(|| {
            let names = devices.iter().map(|it| format!("cuda:{} ({})", it.ordinal, it.name));
            Error::NoSuchDevice { ordinal, devices: names.collect() }
        })?;
        crate::symbols::check()?;
        let device = call("cuDeviceGet", result::device::get(ordinal.cast_signed()))?;
        // SAFETY: the device is the driver's own; the context is retained for the life of the process.
        let context = call("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        // SAFETY: the context is alive.
        call("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) })?;
        let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device is the driver's own.
        let shared = call("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) })?;
        let streams = [stream(FIRST)?, stream(LATER)?, stream(LATER)?];
        Ok(Self::assembled(info, shared.unsigned_abs(), (context, streams), None))
    }

    /// A device that is described but not there. Everything that is asked of it succeeds and is counted; nothing is computed, and what is
    /// read back is zero.
    pub fn dry(info: DeviceInfo, shared_memory: u32) -> Arc<Gpu> {
        Self::dry_at(info, shared_memory, Rates::ENDLESS)
    }

    /// A device that is described but not there, whose clock goes on as if it worked at these rates.
    pub fn dry_at(info: DeviceInfo, shared_memory: u32, rates: Rates) -> Arc<Gpu> {
        let nothing = (std::ptr::null_mut(), [std::ptr::null_mut(); 3]);
        Self::assembled(info, shared_memory, nothing, Some(Dry::new(rates)))
    }

    /// Of the driver's handles: a context, and the streams for computing, for copying and for what is done ahead. A device that is not
    /// there has none.
    fn assembled(
        info: DeviceInfo,
        shared_memory: u32,
        (context, [compute, copy, side]): (sys::CUcontext, [sys::CUstream; 3]),
        dry: Option<Dry>,
    ) -> Arc<Gpu> {
        Arc::new(Gpu {
            overlaps: dry.is_none() && overlaps(&info),
            repeats: dry.is_none() && repeats(),
            repeating: Mutex::default(),
            script: Mutex::new(None),
            scripted: AtomicBool::new(false),
            info,
            context,
            compute,
            copy,
            side,
            works_ahead: is_on("HALFBYTE_CUDA_AHEAD"),
            takes_turns: is_on("HALFBYTE_CUDA_TURNS"),
            shared_memory,
            pool: Mutex::new(Pool::new(dry.is_some() || keeps_memory())),
            limit: Mutex::new(None),
            ring: Mutex::new(None),
            shelf: Mutex::default(),
            tally: Tally::default(),
            measuring: Mutex::default(),
            modules: Mutex::default(),
            blas: Mutex::new(None),
            fault: Mutex::new(None),
            attached: Mutex::new(None),
            dry,
        })
    }

    /// Whether what can be done ahead of its turn, on the stream beside the compute stream, should be; not with `HALFBYTE_CUDA_AHEAD=off`.
    pub fn works_ahead(&self) -> bool {
        self.works_ahead
    }

    /// Whether a kernel should be taken whose blocks wait for their turn to add to a sum, where there is one that needs none; not with
    /// `HALFBYTE_CUDA_TURNS=off`.
    pub fn takes_turns(&self) -> bool {
        self.takes_turns
    }

    /// Hands out what a crate above keeps for this device, one value of one type, which lives as long as the device is open.
    ///
    /// # Panics
    /// If something else is kept already.
    pub fn attached<T: Default + Send + 'static, R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        let mut kept = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let it = kept.get_or_insert_with(|| Box::new(T::default()));
        use_it(it.downcast_mut().expect("one type of value is kept for a device"))
    }

    /// Whether there is no device behind it.
    pub fn is_dry(&self) -> bool {
        self.dry.is_some()
    }

    /// What each kernel, named as `rms_norm.bf16/forward`, would have done since this was last asked; nothing where there is a device.
    pub fn booked(&self) -> BTreeMap<String, Booked> {
        self.dry.as_ref().map(|it| it.take_booked()).unwrap_or_default()
    }

    /// For the books of a dry device: the kernel that is started next reads and writes so many bytes, as it goes over a part of what it
    /// is given, or follows addresses that lie in a table. Without a word it goes once over everything.
    pub fn next_moves(&self, bytes: usize) {
        if let Some(dry) = &self.dry {
            dry.tell(bytes as u64);
        }
    }

    /// Counts floating-point operations that a kernel does beside the products, which count themselves.
    pub fn count_operations(&self, operations: u64) {
        self.tally.operations.fetch_add(operations, Ordering::Relaxed);
        if let Some(dry) = &self.dry {
            dry.pass_operations(operations.cast_signed());
        }
    }

    /// Lets the clock of a dry device go on by what so many more operations would take than are counted, or go back: for a kernel that
    /// does its own by a longer or a shorter way than those whose rate is known.
    pub fn takes_longer_by(&self, operations: i64) {
        if let Some(dry) = &self.dry {
            dry.pass_operations(operations);
        }
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The most shared memory that a block of a kernel can have on this device, in bytes: 227 KiB on Hopper.
    pub fn shared_memory_limit(&self) -> u32 {
        self.shared_memory
    }

    /// Free and total bytes, as the driver sees them.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        if self.is_dry() {
            let total = usize::try_from(self.info.memory_bytes).unwrap_or(usize::MAX);
            return Ok((total.saturating_sub(self.stats().reserved), total));
        }
        self.bind()?;
        call("cuMemGetInfo", result::mem_get_info())
    }

    /// Bytes of buffers, and what was taken from the driver for them.
    pub fn stats(&self) -> MemoryStats {
        self.pool().stats()
    }

    /// What was asked of the device so far.
    pub fn counters(&self) -> Counters {
        self.tally.read()
    }

    /// Lets [`Gpu::alloc`] fail where more than so many bytes would be live, as a smaller device would.
    pub fn limit_memory(&self, bytes: Option<usize>) {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// A buffer of unspecified contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the device has no such piece left, also after giving back what is kept for reuse.
    pub fn alloc(self: &Arc<Gpu>, bytes: usize) -> Result<Buffer, Error> {
        self.alloc_for(Purpose::Data, bytes)
    }

    /// [`Gpu::alloc`] of a buffer for a purpose.
    ///
    /// # Errors
    /// As there.
    pub fn alloc_for(self: &Arc<Gpu>, purpose: Purpose, bytes: usize) -> Result<Buffer, Error> {
        let limit = *self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pool = self.pool();
        let live = pool.stats().live;
        let out_of_memory = Error::OutOfMemory { asked: bytes, live };
        if limit.is_some_and(|limit| live + Pool::rounded(bytes) > limit) {
            return Err(out_of_memory);
        }
        if purpose == Purpose::Workspace {
            pool.outgrown(bytes).into_iter().try_for_each(|base| self.release(base))?;
        }
        // Work is in stream order, so a block may be handed out again while what used it is still running.
        let block = match pool.alloc((bytes, purpose), |size| self.fresh(size)) {
            Ok(block) => block,
            Err(_) => {
                self.trim(&mut pool)?;
                pool.alloc((bytes, purpose), |size| self.fresh(size)).map_err(|_| out_of_memory)?
            }
        };
        drop(pool);
        if let Some(dry) = &self.dry {
            dry.hold(block.ptr, bytes);
        }
        Ok(Buffer { gpu: self.clone(), held: Held::Own(Some(block)), bytes })
    }

    /// Memory of so many bytes, for callers that can return no error: if there is none left, the buffer leads nowhere, and the
    /// next thing that is asked of the device fails with the reason.
    pub fn alloc_or_fault(self: &Arc<Gpu>, bytes: usize) -> Buffer {
        self.alloc(bytes).unwrap_or_else(|error| {
            self.fault(error);
            Buffer { gpu: self.clone(), held: Held::Own(None), bytes }
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

    fn fresh(&self, size: usize) -> Result<u64, Error> {
        if let Some(dry) = &self.dry {
            return Ok(dry.segment(size));
        }
        self.bind()?;
        self.says_once("new memory")?;
        // SAFETY: the stream is alive, and the memory is used in its order.
        call("cuMemAllocAsync", unsafe { result::malloc_async(self.compute, size) })
    }

    /// Gives everything that is kept for reuse back to the driver.
    fn trim(&self, pool: &mut Pool) -> Result<(), Error> {
        pool.trim().into_iter().try_for_each(|base| self.release(base))?;
        self.synchronize()
    }

    /// Gives a segment back to the driver.
    fn release(&self, base: u64) -> Result<(), Error> {
        if self.is_dry() {
            return Ok(());
        }
        self.bind()?;
        self.says_once("memory given back")?;
        // SAFETY: nobody holds a part of it, and what used it comes before in the stream.
        call("cuMemFreeAsync", unsafe { result::free_async(base, self.compute) })
    }

    /// Takes a buffer's block back.
    pub(crate) fn give_back(&self, block: Block) {
        if let Some(dry) = &self.dry {
            dry.forget(block.ptr);
        }
        let segment = self.pool().free(block);
        if let Some(Err(error)) = segment.map(|it| self.release(it)) {
            self.fault(error);
        }
    }

    /// Has `fill` write page-locked memory and hands that to `copy`, as [`Ring::send`] does. The ring is made when it is first needed.
    pub(crate) fn send<E: From<Error>>(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
        copy: impl FnOnce(&[u8]) -> Result<(), Error>,
    ) -> Result<(), E> {
        if self.is_dry() {
            return Ok(());
        }
        self.says_once("an upload")?;
        let mut guard = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(Ring::new(self)?);
        }
        let Some(ring) = guard.as_mut() else { unreachable!("made above") };
        ring.send(self, bytes, fill, copy)
    }

    /// Waits until everything that was asked of the compute stream is done; reports what went wrong meanwhile.
    ///
    /// # Errors
    /// The first failure of a kernel or copy.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.compute_stream().synchronize()
    }

    /// Makes the context current on this thread, unless there is a fault: every call to the device comes through here.
    pub(crate) fn bind(&self) -> Result<(), Error> {
        self.check()?;
        if self.is_dry() {
            return Ok(());
        }
        // SAFETY: the context is alive as long as the process.
        call("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.info)
    }
}

/// From compute capability 9.0 on, with a driver that knows it; unless `HALFBYTE_CUDA_OVERLAP=off`, to see what it saves.
fn overlaps(info: &DeviceInfo) -> bool {
    info.compute_capability.major >= 9 && is_on("HALFBYTE_CUDA_OVERLAP") && crate::symbols::has_overlapping_launches()
}

/// Whether passes that come again are started as a whole: with a driver that knows graphs, and buffers that come to lie where they did
/// before; unless `HALFBYTE_CUDA_GRAPH=off`, to see what it saves.
fn repeats() -> bool {
    is_on("HALFBYTE_CUDA_GRAPH") && keeps_memory() && crate::symbols::has_graphs()
}

/// Whether buffers come from a pool, as they do unless `HALFBYTE_CUDA_POOL=off` asks for each to be the driver's own, so that a
/// memory checker sees where it ends.
fn keeps_memory() -> bool {
    is_on("HALFBYTE_CUDA_POOL")
}

/// Whether something is on, as it is unless the environment says `off`.
fn is_on(setting: &str) -> bool {
    std::env::var_os(setting).is_none_or(|it| it != "off")
}

/// Priorities of streams: lower is first. Blocks of the compute stream come to the device before those of what is done beside it.
const FIRST: i32 = -1;
const LATER: i32 = 0;

/// A stream of the current context.
fn stream(priority: i32) -> Result<sys::CUstream, Error> {
    let mut it = std::ptr::null_mut();
    let kind = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: the context is current, and there is room for the handle.
    let made = unsafe { sys::cuStreamCreateWithPriority(&raw mut it, kind, priority) };
    call("cuStreamCreateWithPriority", made.result())?;
    Ok(it)
}

/// Gives a failed call its name.
pub(crate) fn call<T>(call: &'static str, result: Result<T, result::DriverError>) -> Result<T, Error> {
    result.map_err(|e| Error::Call {
        call,
        name: e.error_name().map_or_else(|_| "an unnamed error".into(), |it| it.to_string_lossy().into_owned()),
        code: e.0 as i32,
    })
}
