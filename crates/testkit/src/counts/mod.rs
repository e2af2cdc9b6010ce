//! What launches do that decides their speed on a GPU, counted on the CPU in the guise of one: sectors of global memory, passes over
//! the banks of shared memory, barriers, exchanges and products.
//!
//! ```no_run
//! # use halfbyte_testkit::counts::Counter;
//! let Some(counter) = Counter::new() else { return };
//! let gpu = counter.gpu();
//! let launches = counter.count(|| { /* ops on gpu */ });
//! for it in halfbyte_testkit::counts::by_kernel(&launches) {
//!     assert!(it.global().coalescing() >= 0.9, "{it}\n{}", it.explain());
//! }
//! ```

// A table for who asks for one.
#![allow(clippy::print_stderr)]

mod cuda;

use halfbyte_cuda::Gpu;
use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What an access of a warp was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A load from global memory.
    Load,
    /// A store to it.
    Store,
    /// A load from shared memory.
    SharedLoad,
    /// A store to it.
    SharedStore,
    /// `ldmatrix`, of four matrices.
    Matrices,
    /// What `cp.async` reads in global memory.
    CopyFrom,
    /// What it writes in shared memory.
    CopyTo,
}

impl Kind {
    fn is_global(self) -> bool {
        matches!(self, Kind::Load | Kind::Store | Kind::CopyFrom)
    }
}

/// One place in a kernel's text, and what all warps did there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    code: u64,
    /// What they did.
    pub kind: Kind,
    /// Accesses of a warp.
    pub requests: u64,
    /// Different bytes of global memory that the requests named.
    pub bytes: u64,
    /// Sectors of 32 bytes that they touched.
    pub sectors: u64,
    /// Those they would touch if the bytes of each lay together.
    pub fewest_sectors: u64,
    /// Passes over the banks of shared memory.
    pub passes: u64,
    /// Those there would be without conflicts.
    pub fewest_passes: u64,
}

impl Spot {
    /// The lines that it is of, the innermost first.
    fn source(&self) -> String {
        let Some(library) = crate::cuda::preload_counting() else { return String::new() };
        let mut tool = Command::new("addr2line");
        tool.arg("-i").arg("-e").arg(library).arg(format!("{:#x}", self.code - 1));
        let Ok(out) = tool.output() else { return "(addr2line is missing)".into() };
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let kernels = text.lines().filter(|it| it.contains(".cu"));
        kernels.map(|it| it.rsplit("crates/").next().unwrap_or(it)).collect::<Vec<_>>().join(" < ")
    }
}

/// Accesses to global memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Global {
    /// Accesses of a warp.
    pub requests: u64,
    /// Different bytes that each named.
    pub bytes: u64,
    /// Sectors of 32 bytes that each touched.
    pub sectors: u64,
    /// Those it would touch if its bytes lay together.
    pub fewest_sectors: u64,
}

impl Global {
    /// How much of what is moved is asked for: 1 at best.
    pub fn coalescing(&self) -> f64 {
        if self.sectors == 0 { 1.0 } else { self.fewest_sectors as f64 / self.sectors as f64 }
    }
}

/// Accesses to shared memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// Accesses of a warp.
    pub requests: u64,
    /// Passes over the banks.
    pub passes: u64,
    /// Those there would be without conflicts.
    pub fewest_passes: u64,
}

impl Shared {
    /// Passes that conflicts of banks cost.
    pub fn conflicts(&self) -> u64 {
        self.passes - self.fewest_passes
    }
}

/// What one launch did, or several of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// The module's name and the kernel's, as `rms_norm.bf16/forward`.
    pub kernel: String,
    /// How many launches these are.
    pub launches: u64,
    /// Blocks, of the first.
    pub grid: [u32; 3],
    /// Threads a block, of the first.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory a block, of the first.
    pub dynamic_shared: u32,
    /// Bytes of different sectors of global memory that a launch read: what its memory moves if a cache holds what comes twice.
    pub read_bytes: u64,
    /// Those it wrote.
    pub written_bytes: u64,
    /// Barriers, of each block.
    pub barriers: u64,
    /// Exchanges between the lanes of a warp.
    pub exchanges: u64,
    /// `mma.m16n8k16` of a warp.
    pub products: u64,
    /// Additions in memory, of each lane.
    pub atomics: u64,
    /// Where it accessed memory.
    pub spots: Vec<Spot>,
}

impl Launched {
    fn sum(&self, which: impl Fn(Kind) -> bool) -> (Global, Shared) {
        let (mut global, mut shared) = (Global::default(), Shared::default());
        for it in self.spots.iter().filter(|it| which(it.kind)) {
            global.requests += it.requests;
            global.bytes += it.bytes;
            global.sectors += it.sectors;
            global.fewest_sectors += it.fewest_sectors;
            shared.requests += it.requests;
            shared.passes += it.passes;
            shared.fewest_passes += it.fewest_passes;
        }
        (global, shared)
    }

    /// All accesses to global memory.
    pub fn global(&self) -> Global {
        self.sum(Kind::is_global).0
    }

    /// Accesses to global memory of one kind.
    pub fn of(&self, kind: Kind) -> Global {
        self.sum(|it| it == kind && it.is_global()).0
    }

    /// All accesses to shared memory.
    pub fn shared(&self) -> Shared {
        self.sum(|it| !it.is_global()).1
    }

    /// Accesses to shared memory of one kind.
    pub fn shared_of(&self, kind: Kind) -> Shared {
        self.sum(|it| it == kind && !it.is_global()).1
    }

    /// Bytes that a launch moves to and from memory at the least.
    pub fn moved(&self) -> u64 {
        self.read_bytes + self.written_bytes
    }

    /// Where most is wasted, by lines of the kernels' files.
    pub fn explain(&self) -> String {
        let waste = |it: &Spot| (it.sectors - it.fewest_sectors).max(it.passes - it.fewest_passes);
        let mut spots: Vec<&Spot> = self.spots.iter().filter(|it| waste(it) > 0).collect();
        spots.sort_by_key(|it| std::cmp::Reverse(waste(it)));
        let line = |it: &&Spot| {
            format!(
                "  {:?}: {} requests, sectors {} of at least {}, passes {} of at least {}: {}\n",
                it.kind,
                it.requests,
                it.sectors,
                it.fewest_sectors,
                it.passes,
                it.fewest_passes,
                it.source()
            )
        };
        spots.iter().take(8).map(line).collect()
    }
}

impl fmt::Display for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (global, shared) = (self.global(), self.shared());
        write!(
            f,
            "{:<38} {:>4} x {:>7} B read {:>7} B written, {:>7} sectors, coalescing {:.3}, shared {:>7} passes, {:>5} conflicts, {:>5} barriers, {:>6} exchanges, {:>6} products",
            self.kernel,
            self.launches,
            self.read_bytes,
            self.written_bytes,
            global.sectors,
            global.coalescing(),
            shared.passes,
            shared.conflicts(),
            self.barriers,
            self.exchanges,
            self.products
        )
    }
}

/// The sums over all launches of each kernel.
pub fn by_kernel(launches: &[Launched]) -> Vec<Launched> {
    let mut sums: BTreeMap<&str, Launched> = BTreeMap::new();
    for it in launches {
        let Some(sum) = sums.get_mut(it.kernel.as_str()) else {
            sums.insert(&it.kernel, it.clone());
            continue;
        };
        sum.launches += it.launches;
        sum.read_bytes += it.read_bytes;
        sum.written_bytes += it.written_bytes;
        sum.barriers += it.barriers;
        sum.exchanges += it.exchanges;
        sum.products += it.products;
        sum.atomics += it.atomics;
        for spot in &it.spots {
            match sum.spots.iter_mut().find(|it| (it.code, it.kind) == (spot.code, spot.kind)) {
                None => sum.spots.push(*spot),
                Some(it) => {
                    it.requests += spot.requests;
                    it.bytes += spot.bytes;
                    it.sectors += spot.sectors;
                    it.fewest_sectors += spot.fewest_sectors;
                    it.passes += spot.passes;
                    it.fewest_passes += spot.fewest_passes;
                }
            }
        }
    }
    sums.into_values().collect()
}

/// The CPU in the guise of a GPU, with what it counts; one at a time in a process, which must not have opened a GPU in another way.
pub struct Counter {
    gpu: Arc<Gpu>,
    library: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Counter {
    /// `None` where there is no C++ compiler, or a real GPU takes its place; says why.
    pub fn new() -> Option<Counter> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let library = crate::cuda::preload_counting()?;
        let gpu = Gpu::open(0).expect("a GPU that was made opens");
        Some(Counter { gpu, library, _alone: alone })
    }

    /// The GPU.
    pub fn gpu(&self) -> Arc<Gpu> {
        self.gpu.clone()
    }

    /// What was launched meanwhile, in order; with `CUDA_ON_CPU_COUNTS` in the environment it is shown by kernel, too.
    pub fn count(&self, run: impl FnOnce()) -> Vec<Launched> {
        self.gpu.synchronize().expect("what was asked before runs");
        let counting = cuda::Counting::begin(&self.library);
        run();
        self.gpu.synchronize().expect("what is counted runs");
        let launches = counting.end();
        if std::env::var_os("CUDA_ON_CPU_COUNTS").is_some() {
            for it in by_kernel(&launches) {
                eprintln!("{it}\n{}", it.explain());
            }
        }
        launches
    }
}
