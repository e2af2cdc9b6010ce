//! The interface of the library that counts, as `cuda_on_cpu/counts_interface.hpp` has it.

use super::{Kind, Launched, Spot};
use libloading::os::unix::{Library, Symbol};
use std::path::Path;

#[repr(C)]
#[derive(Clone, Copy)]
struct RawPlace {
    code: u64,
    kind: u32,
    unused: u32,
    requests: u64,
    bytes: u64,
    sectors: u64,
    fewest_sectors: u64,
    passes: u64,
    fewest_passes: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawLaunch {
    kernel: [u8; 128],
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    unused: u32,
    places: u64,
    read_sectors: u64,
    written_sectors: u64,
    barriers: u64,
    exchanges: u64,
    products: u64,
    atomics: u64,
}

const SECTOR: u64 = 32;

type Switch = unsafe extern "C" fn(bool);
type Length = unsafe extern "C" fn() -> usize;
type OfLaunch = unsafe extern "C" fn(usize, *mut RawLaunch) -> bool;
type OfPlace = unsafe extern "C" fn(usize, usize, *mut RawPlace) -> bool;

/// Counting, from the beginning to the end.
pub(super) struct Counting {
    library: Library,
}

impl Counting {
    pub(super) fn begin(library: &Path) -> Counting {
        // SAFETY: it is open already; nothing runs.
        let library = unsafe { Library::new(library) }.expect("the library that counts is open");
        let it = Counting { library };
        // SAFETY: a switch of the library.
        unsafe { it.symbol::<Switch>(b"cuda_on_cpu_count\0")(true) };
        it
    }

    pub(super) fn end(self) -> Vec<Launched> {
        // SAFETY: functions of the library, which write one structure each that is of their layout, and all of whose bits are numbers.
        unsafe {
            self.symbol::<Switch>(b"cuda_on_cpu_count\0")(false);
            let count = self.symbol::<Length>(b"cuda_on_cpu_launches\0")();
            (0..count).map(|i| self.launched(i)).collect()
        }
    }

    /// # Safety
    /// There must be a launch of this number.
    unsafe fn launched(&self, i: usize) -> Launched {
        // SAFETY: as the caller says, and above.
        let (raw, spots) = unsafe {
            let mut raw: RawLaunch = std::mem::zeroed();
            assert!(self.symbol::<OfLaunch>(b"cuda_on_cpu_launch\0")(i, &raw mut raw));
            let of_place = self.symbol::<OfPlace>(b"cuda_on_cpu_place\0");
            let mut spots = Vec::new();
            for at in 0..raw.places as usize {
                let mut place: RawPlace = std::mem::zeroed();
                assert!(of_place(i, at, &raw mut place));
                spots.push(spot(&place));
            }
            (raw, spots)
        };
        let name = raw.kernel.iter().take_while(|it| **it != 0).copied().collect();
        Launched {
            kernel: String::from_utf8(name).expect("kernels have names in ASCII"),
            launches: 1,
            grid: raw.grid,
            block: raw.block,
            dynamic_shared: raw.dynamic_shared,
            read_bytes: raw.read_sectors * SECTOR,
            written_bytes: raw.written_sectors * SECTOR,
            barriers: raw.barriers,
            exchanges: raw.exchanges,
            products: raw.products,
            atomics: raw.atomics,
            spots,
        }
    }

    /// # Safety
    /// The type must be the symbol's.
    unsafe fn symbol<F>(&self, name: &[u8]) -> Symbol<F> {
        // SAFETY: as the caller says.
        unsafe { self.library.get(name) }.expect("the library is one that counts")
    }
}

fn spot(raw: &RawPlace) -> Spot {
    let kind = match raw.kind {
        0 => Kind::Load,
        1 => Kind::Store,
        2 => Kind::SharedLoad,
        3 => Kind::SharedStore,
        4 => Kind::Matrices,
        5 => Kind::CopyFrom,
        6 => Kind::CopyTo,
        other => panic!("an access of kind {other}"),
    };
    Spot {
        code: raw.code,
        kind,
        requests: raw.requests,
        bytes: raw.bytes,
        sectors: raw.sectors,
        fewest_sectors: raw.fewest_sectors,
        passes: raw.passes,
        fewest_passes: raw.fewest_passes,
    }
}
