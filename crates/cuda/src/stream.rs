//! The orders in which a device works, and the events at which one waits for another.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::{result, sys};

use crate::buffer::Buffer;
use crate::counters::count;
use crate::error::Error;
use crate::gpu::{Gpu, call};

/// A point in a stream's order: recorded behind what was asked so far, passed when all of that is done.
#[derive(Debug)]
pub struct Event {
    raw: sys::CUevent,
    /// What the clock of a device that is not there said, in picoseconds.
    at: AtomicU64,
    /// That it was recorded by that device's copy stream.
    of_copies: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that remembers when it was passed, for [`Gpu::seconds_between`].
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn timed(gpu: &Gpu) -> Result<Event, Error> {
        Event::new(gpu, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// An event that only says whether it was passed.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn untimed(gpu: &Gpu) -> Result<Event, Error> {
        Event::new(gpu, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn new(gpu: &Gpu, flags: sys::CUevent_flags) -> Result<Event, Error> {
        gpu.bind()?;
        if gpu.is_dry() {
            return Ok(Event::of(std::ptr::null_mut()));
        }
        Ok(Event::of(call("cuEventCreate", result::event::create(flags))?))
    }

    fn of(raw: sys::CUevent) -> Event {
        Event { raw, at: AtomicU64::new(0), of_copies: AtomicBool::new(false) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        // SAFETY: created by the driver, and destroyed once; the driver keeps it until nobody waits for it.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}

impl Gpu {
    /// Whether everything that was asked before the event is done. One that was never recorded counts as passed.
    ///
    /// # Errors
    /// If something that was asked before it failed.
    pub fn has_passed(&self, event: &Event) -> Result<bool, Error> {
        self.bind()?;
        if self.is_dry() {
            return Ok(true);
        }
        self.says_once("whether it is done")?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(event.raw) } {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => call("cuEventQuery", other).map(|()| true),
        }
    }

    /// Waits until everything that was asked before the event is done.
    ///
    /// # Errors
    /// If something that was asked before it failed.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.bind()?;
        count(&self.tally.synchronisations);
        if self.is_dry() {
            return Ok(());
        }
        self.says_once("a wait")?;
        // SAFETY: the event is alive.
        call("cuEventSynchronize", unsafe { result::event::synchronize(event.raw) })
    }

    /// The device's own time from one timed event to a later one, both passed, in seconds.
    ///
    /// # Errors
    /// If an event is not timed, was not recorded or not passed.
    pub fn seconds_between(&self, from: &Event, to: &Event) -> Result<f64, Error> {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        const CALL: &str = "cuEventElapsedTime";
        self.bind()?;
        if self.is_dry() {
            let [from, to] = [from, to].map(|it| it.at.load(Ordering::Relaxed));
            return Ok(to.saturating_sub(from) as f64 * 1e-12);
        }
        // By name, since the bindings ask for a later one that only drivers from CUDA 12.8 on have.
        // SAFETY: this is the function's C signature.
        let elapsed = unsafe { sys::culib().get::<Elapsed>(CALL.as_bytes()) };
        let elapsed = elapsed.map_err(|_| Error::MissingSymbol { path: "libcuda.so".into(), symbol: CALL })?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and the number outlives the call.
        call(CALL, unsafe { elapsed(&raw mut milliseconds, from.raw, to.raw) }.result())?;
        Ok(f64::from(milliseconds) * 1e-3)
    }

    /// The stream of kernels and products.
    pub fn compute_stream(&self) -> Stream<'_> {
        Stream { gpu: self, which: Which::Compute, raw: self.compute }
    }

    /// The stream for copies that go on beside the kernels.
    pub fn copy_stream(&self) -> Stream<'_> {
        Stream { gpu: self, which: Which::Copy, raw: self.copy }
    }

    /// The stream of kernels that are started [`Gpu::beside`] the others.
    pub fn side_stream(&self) -> Stream<'_> {
        Stream { gpu: self, which: Which::Side, raw: self.side }
    }

    /// Kernels that `start` starts on this thread go on beside those of the compute stream, in an order of their own. Whoever asks for that
    /// says by events what they wait for and what waits for them.
    pub fn beside<R>(&self, start: impl FnOnce() -> R) -> R {
        struct Back(bool);
        impl Drop for Back {
            fn drop(&mut self) {
                BESIDE.set(self.0);
            }
        }
        let _back = Back(BESIDE.replace(true));
        start()
    }

    /// The stream that a kernel goes to which this thread starts now.
    pub(crate) fn current(&self) -> Stream<'_> {
        if BESIDE.get() { self.side_stream() } else { self.compute_stream() }
    }
}

/// Which of the streams of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    Compute,
    Copy,
    Side,
}

thread_local! {
    /// Whether kernels that this thread starts go to the side stream.
    static BESIDE: Cell<bool> = const { Cell::new(false) };
}

/// An order of work of its own. Where two orders meet is said by events, or by [`Stream::wait_for_compute`] and
/// [`Stream::before_compute`].
#[derive(Clone, Copy)]
pub struct Stream<'g> {
    gpu: &'g Gpu,
    pub(crate) which: Which,
    pub(crate) raw: sys::CUstream,
}

impl Stream<'_> {
    /// Puts the event behind everything that was asked of this stream so far.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        self.gpu.bind()?;
        if let Some(dry) = &self.gpu.dry {
            event.at.store(dry.now(self.which), Ordering::Relaxed);
            event.of_copies.store(self.which == Which::Copy, Ordering::Relaxed);
            return Ok(());
        }
        if !self.says("record")? {
            return Ok(());
        }
        // SAFETY: event and stream are alive.
        call("cuEventRecord", unsafe { result::event::record(event.raw, self.raw) })
    }

    /// Lets what is asked of this stream from now on wait until the event, as last recorded, is passed.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn wait_for(&self, event: &Event) -> Result<(), Error> {
        self.gpu.bind()?;
        if let Some(dry) = &self.gpu.dry {
            let waited = dry.wait_until(self.which, event.at.load(Ordering::Relaxed));
            if self.which == Which::Compute && event.of_copies.load(Ordering::Relaxed) {
                self.gpu.tally.waited.fetch_add(waited, Ordering::Relaxed);
            }
            return Ok(());
        }
        if !self.says("wait")? {
            return Ok(());
        }
        let how = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream are alive.
        call("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.raw, event.raw, how) })
    }

    /// What follows here waits until all kernels asked for so far are done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn wait_for_compute(&self) -> Result<(), Error> {
        self.follow(self.gpu.compute_stream())
    }

    /// Kernels that follow wait until everything asked for here so far is done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn before_compute(&self) -> Result<(), Error> {
        self.gpu.compute_stream().follow(*self)
    }

    /// Says what is about to be asked of this stream, and hears whether it still is to be. Which event it is about shows in what follows.
    fn says(&self, word: &'static str) -> Result<bool, Error> {
        if self.which == Which::Copy {
            // Page-locked memory of the host is its callers', and not always the same.
            self.gpu.says_once("copies beside it")?;
        }
        self.gpu.says((word, self.which))
    }

    fn follow(&self, first: Stream<'_>) -> Result<(), Error> {
        let event = Event::untimed(self.gpu)?;
        first.record(&event)?;
        self.wait_for(&event)
    }

    /// Copies a part of page-locked memory to a buffer's byte `at`.
    ///
    /// # Safety
    /// `from` must not be changed or freed until the copy is done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub unsafe fn upload(&self, to: &mut Buffer, at: usize, from: &[u8]) -> Result<(), Error> {
        assert!(at + from.len() <= to.bytes(), "a copy stays within its buffer");
        self.gpu.bind()?;
        self.pass(from.len());
        if self.gpu.is_dry() {
            return Ok(());
        }
        self.gpu.says_once("an upload")?;
        // SAFETY: the range lies in the buffer, and the caller keeps the source.
        call("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to.ptr() + at as u64, from, self.raw) })
    }

    /// Copies a buffer's bytes from `at` on to page-locked memory.
    ///
    /// # Safety
    /// `into` must not be read, changed or freed until the copy is done.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub unsafe fn download(&self, into: &mut [u8], from: &Buffer, at: usize) -> Result<(), Error> {
        assert!(at + into.len() <= from.bytes(), "a copy stays within its buffer");
        self.gpu.bind()?;
        self.pass(into.len());
        if self.gpu.is_dry() {
            return Ok(());
        }
        self.gpu.says_once("a download")?;
        // SAFETY: the range lies in the buffer, and the caller keeps the target.
        call("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(into, from.ptr() + at as u64, self.raw) })
    }

    /// Counts a copy from or to host memory.
    pub(crate) fn pass(&self, bytes: usize) {
        self.gpu.tally.copied.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(dry) = &self.gpu.dry {
            dry.pass_copy(bytes as u64);
        }
    }

    /// Sets bytes of a buffer to zero.
    ///
    /// # Errors
    /// If the driver's call fails.
    pub fn zero(&self, buffer: &mut Buffer, at: usize, bytes: usize) -> Result<(), Error> {
        assert!(at + bytes <= buffer.bytes(), "what is cleared lies within its buffer");
        if bytes == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        if self.gpu.is_dry() {
            return Ok(());
        }
        if !self.gpu.says(("zero", self.which, buffer.ptr() + at as u64, bytes))? {
            return Ok(());
        }
        // SAFETY: the range lies in the buffer.
        call("cuMemsetD8Async", unsafe { result::memset_d8_async(buffer.ptr() + at as u64, 0, bytes, self.raw) })
    }

    /// Waits until everything that was asked of this stream is done.
    ///
    /// # Errors
    /// If something of it failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.gpu.bind()?;
        count(&self.gpu.tally.synchronisations);
        if self.gpu.is_dry() {
            return Ok(());
        }
        self.gpu.says_once("a wait")?;
        // SAFETY: the stream is alive.
        call("cuStreamSynchronize", unsafe { result::stream::synchronize(self.raw) })
    }
}
