//! Launches whose answers are known.

use halfbyte_cuda::{Buffer, Launch, Number, Slice, T, kernels};
use halfbyte_testkit::counts::{Counter, Global, Kind, Launched, Shared, by_kernel};

kernels! {
    const SOURCE = "counts", "../../src/counts/kernel.cu", over Slice;
    read_apart as ReadApart { x: *const f32, y: *mut f32, first: i32, stride: i32 }
    copy_packs as CopyPacks { x: *const f32, y: *mut f32, stride: i32 }
    read_unevenly as ReadUnevenly { x: *const f32, y: *mut f32, few: i32 }
    read_columns as ReadColumns { x: *const f32, y: *mut f32, width: i32 }
    read_shared_packs as ReadSharedPacks { y: *mut f32, stride: i32 }
    read_fragments as ReadFragments { x: *const T, y: *mut f32, swizzled: i32 }
}

const FLOATS: usize = 4096;

struct Bench {
    counter: Counter,
    x: Buffer,
    y: Buffer,
}

impl Bench {
    fn new() -> Option<Bench> {
        let counter = Counter::new()?;
        let [x, y] = [(); 2].map(|()| counter.gpu().alloc(4 * FLOATS).unwrap());
        let mut it = Bench { counter, x, y };
        it.x.upload(&[0; 4 * FLOATS]).unwrap();
        Some(it)
    }

    fn x(&self) -> Slice {
        Slice(self.x.ptr())
    }

    fn y(&self) -> Slice {
        Slice(self.y.ptr())
    }

    /// What one launch of so many threads did.
    fn one(&self, threads: u32, launch: impl FnOnce(Launch)) -> Launched {
        let shape = Launch { grid: (1, 1, 1), block: (threads, 1, 1), shared: 32 << 10 };
        let all = self.counter.count(|| launch(shape));
        assert_eq!(all.len(), 1);
        all.into_iter().next().unwrap()
    }
}

/// An access of a warp that names so many bytes, and touches so many sectors.
fn one(bytes: u64, sectors: u64) -> Global {
    Global { requests: 1, bytes, sectors, fewest_sectors: bytes.div_ceil(32) }
}

#[test]
fn sectors_that_a_warp_touches_depend_on_how_far_apart_its_lanes_read() {
    let Some(it) = Bench::new() else { return };
    let gpu = it.counter.gpu();
    for (first, stride, bytes, sectors) in [
        (0, 1, 128, 4),
        (0, 2, 128, 8),
        (0, 8, 128, 32),
        (0, 64, 128, 32),
        (0, 0, 4, 1),
        (1, 1, 128, 5),
        (8, 1, 128, 4),
    ] {
        let kernel = ReadApart { x: &it.x(), y: &mut it.y(), first, stride };
        // SAFETY: the memory holds all that is read and written.
        let did = it.one(32, |shape| unsafe { kernel.launch(&gpu, Number::F32, shape) }.unwrap());
        assert_eq!(did.kernel, "counts.f32/read_apart");
        assert_eq!((did.of(Kind::Load), did.of(Kind::Store)), (one(bytes, sectors), one(128, 4)), "{first} {stride}");
        assert_eq!((did.read_bytes, did.written_bytes), (32 * sectors, 128));
        assert_eq!((did.shared(), did.barriers, did.exchanges, did.products), (Shared::default(), 0, 0, 0));
    }
}

#[test]
fn sixteen_bytes_a_lane_are_one_access() {
    let Some(it) = Bench::new() else { return };
    let gpu = it.counter.gpu();
    for (stride, sectors) in [(1, 16), (2, 32)] {
        let kernel = CopyPacks { x: &it.x(), y: &mut it.y(), stride };
        // SAFETY: as above.
        let did = it.one(32, |shape| unsafe { kernel.launch(&gpu, Number::F32, shape) }.unwrap());
        assert_eq!((did.of(Kind::Load), did.of(Kind::Store)), (one(512, sectors), one(512, 16)));
        assert_eq!(did.global().coalescing(), 32.0 / (16 + sectors) as f64);
    }
}

#[test]
fn lanes_that_are_elsewhere_are_not_there() {
    let Some(it) = Bench::new() else { return };
    let gpu = it.counter.gpu();
    let kernel = ReadUnevenly { x: &it.x(), y: &mut it.y(), few: 8 };
    // SAFETY: as above.
    let did = it.one(32, |shape| unsafe { kernel.launch(&gpu, Number::F32, shape) }.unwrap());
    let reads = Global { requests: 4, bytes: 4 + 3 * 32, sectors: 4, fewest_sectors: 4 };
    assert_eq!((did.of(Kind::Load), did.of(Kind::Store)), (reads, one(128, 4)));
}

#[test]
fn columns_in_shared_memory_conflict_unless_rows_are_padded() {
    let Some(it) = Bench::new() else { return };
    let gpu = it.counter.gpu();
    for (width, ways) in [(32, 32), (33, 1), (34, 2), (36, 4), (48, 16)] {
        let kernel = ReadColumns { x: &it.x(), y: &mut it.y(), width };
        // SAFETY: as above.
        let did = it.one(64, |shape| unsafe { kernel.launch(&gpu, Number::F32, shape) }.unwrap());
        // Two warps with 32 columns each.
        let loads = Shared { requests: 64, passes: 64 * ways, fewest_passes: 64 };
        assert_eq!(did.shared_of(Kind::SharedLoad), loads, "{width}");
        assert_eq!(did.shared_of(Kind::SharedStore), Shared { requests: 32, passes: 32, fewest_passes: 32 });
        assert_eq!(
            did.of(Kind::Load),
            Global { requests: 32, bytes: 32 * 128, sectors: 32 * 4, fewest_sectors: 32 * 4 }
        );
        assert_eq!((did.barriers, did.exchanges), (1, 2 * 5));
    }
}

#[test]
fn wide_accesses_of_shared_memory_go_by_quarters_of_a_warp() {
    let Some(it) = Bench::new() else { return };
    let gpu = it.counter.gpu();
    for (stride, passes) in [(1, 4), (2, 8), (3, 4), (8, 32)] {
        let kernel = ReadSharedPacks { y: &mut it.y(), stride };
        // SAFETY: as above.
        let did = it.one(32, |shape| unsafe { kernel.launch(&gpu, Number::F32, shape) }.unwrap());
        let each = Shared { requests: 1, passes, fewest_passes: 4 };
        assert_eq!((did.shared_of(Kind::SharedLoad), did.shared_of(Kind::SharedStore)), (each, each), "{stride}");
    }
}

#[test]
fn fragments_of_a_tile_conflict_unless_its_pieces_are_swizzled() {
    let Some(it) = Bench::new() else { return };
    let gpu = it.counter.gpu();
    for (swizzled, ways) in [(0, 8), (1, 1)] {
        let kernel = ReadFragments { x: &it.x(), y: &mut it.y(), swizzled };
        // SAFETY: as above.
        let did = it.one(32, |shape| unsafe { kernel.launch(&gpu, Number::Bf16, shape) }.unwrap());
        let fragments = Shared { requests: 4, passes: 16 * ways, fewest_passes: 16 };
        assert_eq!(did.shared_of(Kind::Matrices), fragments);
        // Eight lanes copy a row of 128 bytes.
        assert_eq!(did.shared_of(Kind::CopyTo), Shared { requests: 4, passes: 16, fewest_passes: 16 });
        assert_eq!(did.of(Kind::CopyFrom), Global { requests: 4, bytes: 2048, sectors: 64, fewest_sectors: 64 });
        assert_eq!((did.products, did.shared_of(Kind::SharedLoad).requests), (4, 0));
    }
}

#[test]
fn places_have_lines_and_sums_go_by_kernel() {
    let Some(it) = Bench::new() else { return };
    let gpu = it.counter.gpu();
    let shape = Launch { grid: (3, 1, 1), block: (32, 1, 1), shared: 0 };
    let launch = |stride| {
        let kernel = ReadApart { x: &it.x(), y: &mut it.y(), first: 0, stride };
        // SAFETY: as above.
        unsafe { kernel.launch(&gpu, Number::F32, shape) }.unwrap();
    };
    launch(1);
    let launches = it.counter.count(|| [1, 2, 2].into_iter().for_each(launch));
    launch(1);
    let [sum] = by_kernel(&launches).try_into().unwrap();
    assert_eq!((launches.len(), sum.launches), (3, 3));
    let sectors = 3 * (4 + 8 + 8);
    assert_eq!(sum.of(Kind::Load), Global { requests: 9, bytes: 9 * 128, sectors, fewest_sectors: 9 * 4 });
    let said = sum.explain();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("testkit/src/counts/kernel.cu:5"), "{said}");
}
