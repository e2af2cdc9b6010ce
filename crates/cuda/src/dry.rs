//! A GPU that is not there: the same pool, the same order of calls, and nothing done.
//!
//! A plan goes through the real code on it. What that code would allocate, launch and multiply is counted, so that the peak of memory
//! and the work of a step are known before anything is loaded, on a machine without a GPU, too.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::launch::Arg;
use crate::matmul::Gemm;
use crate::pool::Block;
use crate::stream::Which;

/// How fast a device is that is not there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Floating-point operations of large products a second.
    pub products: f64,
    /// Those that kernels do themselves, as attention does.
    pub kernels: f64,
    /// Bytes read and written a second.
    pub bytes: f64,
    /// Seconds from the end of one kernel to the beginning of the next.
    pub gap: f64,
    /// Bytes that the copy stream moves from or to host memory a second.
    pub host: f64,
}

impl Rates {
    /// Nothing takes time.
    pub const ENDLESS: Rates =
        Rates { products: f64::INFINITY, kernels: f64::INFINITY, bytes: f64::INFINITY, gap: 0.0, host: f64::INFINITY };
}

/// What a dry device keeps in the place of a driver.
pub(crate) struct Dry {
    rates: Rates,
    /// The clocks of its streams, the compute stream's first, which what is asked of them moves on, in picoseconds.
    clocks: [AtomicU64; 3],
    /// Where the next segment begins; addresses lead nowhere.
    next: AtomicU64,
    /// The bytes that were asked for at each address, for the traffic of kernels.
    sizes: Mutex<HashMap<u64, usize>>,
    /// Bytes that the next kernel moves, where its arguments do not say.
    told: Mutex<Option<u64>>,
    /// What each kernel was asked for.
    booked: Mutex<BTreeMap<String, Booked>>,
    /// What the library of products would take for itself.
    pub(crate) workspace: OnceLock<Block>,
}

/// What a kernel would have done on a device that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Booked {
    /// How often it was started.
    pub launches: u64,
    /// Bytes it would read and write.
    pub bytes: u64,
}

/// Addresses begin here, so that none is the null pointer.
const FIRST: u64 = 1 << 30;

impl Dry {
    pub(crate) fn new(rates: Rates) -> Dry {
        Dry {
            rates,
            clocks: Default::default(),
            next: AtomicU64::new(0),
            sizes: Mutex::default(),
            told: Mutex::default(),
            booked: Mutex::default(),
            workspace: OnceLock::new(),
        }
    }

    /// What the clock of a stream says, in picoseconds.
    pub(crate) fn now(&self, of: Which) -> u64 {
        self.clocks[of as usize].load(Ordering::Relaxed)
    }

    /// A stream goes on when the other has come to this moment. Gives the picoseconds that it waits.
    pub(crate) fn wait_until(&self, of: Which, moment: u64) -> u64 {
        moment.saturating_sub(self.clocks[of as usize].fetch_max(moment, Ordering::Relaxed))
    }

    /// A copy on the copy stream.
    pub(crate) fn pass_copy(&self, bytes: u64) {
        self.clocks[Which::Copy as usize].fetch_add((bytes as f64 / self.rates.host * 1e12) as u64, Ordering::Relaxed);
    }

    /// A kernel, or a copy, that moves so many bytes in the order of a stream.
    pub(crate) fn pass_bytes(&self, of: Which, bytes: u64) {
        self.pass(of, self.rates.gap + bytes as f64 / self.rates.bytes);
    }

    /// Remembers a launch of a kernel.
    pub(crate) fn book(&self, kernel: String, bytes: u64) {
        let mut booked = self.booked.lock().unwrap_or_else(PoisonError::into_inner);
        let it = booked.entry(kernel).or_default();
        it.launches += 1;
        it.bytes += bytes;
    }

    /// What was remembered since the last time, by the names of modules and kernels.
    pub(crate) fn take_booked(&self) -> BTreeMap<String, Booked> {
        std::mem::take(&mut *self.booked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A product, as long as its operations or its bytes take.
    pub(crate) fn pass_product(&self, operations: u64, bytes: u64) {
        let longest = (operations as f64 / self.rates.products).max(bytes as f64 / self.rates.bytes);
        self.pass(Which::Compute, self.rates.gap + longest);
    }

    /// Operations that a kernel does beside moving bytes.
    pub(crate) fn pass_operations(&self, operations: i64) {
        self.pass(Which::Compute, operations as f64 / self.rates.kernels);
    }

    fn pass(&self, of: Which, seconds: f64) {
        self.clocks[of as usize].fetch_add(((seconds * 1e12) as i64).cast_unsigned(), Ordering::Relaxed);
    }

    /// The address of a segment.
    pub(crate) fn segment(&self, bytes: usize) -> u64 {
        FIRST + self.next.fetch_add(bytes as u64, Ordering::Relaxed)
    }

    /// Remembers a buffer.
    pub(crate) fn hold(&self, at: u64, bytes: usize) {
        self.sizes().insert(at, bytes);
    }

    /// Forgets a buffer.
    pub(crate) fn forget(&self, at: u64) {
        self.sizes().remove(&at);
    }

    /// What the next kernel moves.
    pub(crate) fn tell(&self, bytes: u64) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// Bytes that a kernel reads or writes: as was told, or if it goes once over everything it is given.
    pub(crate) fn traffic(&self, args: &[Arg]) -> u64 {
        if let Some(bytes) = self.told.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return bytes;
        }
        let sizes = self.sizes();
        let held = |at: &u64| sizes.get(at).copied().unwrap_or(0) as u64;
        let bytes = |arg: &Arg| match arg {
            Arg::Ptr(at) => held(at),
            Arg::Ptrs(all) => all.iter().map(held).sum(),
            _ => 0,
        };
        args.iter().map(bytes).sum()
    }

    fn sizes(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a product reads and writes, if each operand comes once.
pub(crate) fn product_traffic(gemm: &Gemm) -> u64 {
    let operands = (gemm.m * gemm.k + gemm.k * gemm.n) * gemm.input.size();
    let result = gemm.m * gemm.n * gemm.output.size() * if gemm.beta == 0.0 { 1 } else { 2 };
    (operands + result) as u64
}
