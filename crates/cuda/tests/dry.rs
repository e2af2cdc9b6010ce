//! A device that is not there counts what a real one would be asked for. Needs no driver.

use halfbyte_cuda::{DeviceInfo, Event, Gemm, Gpu, Launch, Matrix, Number, Pinned, Rates, Slice, Version, kernels};
use std::sync::Arc;

kernels! {
    const SOURCE = "nobody", text "KERNEL kernel(const float* x, float* y, int n, const float* z) would not compile", over Slice;
    kernel as Kernel { x: *const f32, y: *mut f32, n: i32, z: Option<*const f32> }
}

fn card() -> Arc<Gpu> {
    card_at(Rates::ENDLESS)
}

fn card_at(rates: Rates) -> Arc<Gpu> {
    let info = DeviceInfo {
        ordinal: 0,
        name: "a card to plan for".into(),
        compute_capability: Version { major: 9, minor: 0 },
        memory_bytes: 80 << 30,
    };
    Gpu::dry_at(info, 227 << 10, rates)
}

/// `x (3, 5) = x (3, k) y (k, 5) + beta x`, in bf16 to f32.
fn gemm([x, y]: [u64; 2], k: usize, beta: f32) -> Gemm {
    let at = |ptr, stride| Matrix { ptr, stride, transposed: false };
    let (a, b, input, output) = (at(x, 7), at(y, 5), Number::Bf16, Number::F32);
    Gemm { m: 3, n: 5, k, a, b, input, c: x, c_stride: 5, output, alpha: 1.0, beta, onto: None }
}

#[test]
fn memory_comes_from_the_pool_that_a_real_device_has() {
    let gpu = card();
    let a = gpu.alloc(100).unwrap();
    let mut b = gpu.alloc(31 << 20).unwrap();
    b.upload(&vec![1; 31 << 20]).unwrap();
    let mut back = vec![9; 31 << 20];
    b.download(&mut back).unwrap();
    assert!(back.iter().all(|it| *it == 0), "nothing was stored");
    // A rest of a segment that is too small to be of use goes with the buffer.
    assert_eq!(gpu.stats().live, 512 + (32 << 20));
    assert!(gpu.stats().reserved >= gpu.stats().live);
    assert_ne!(a.ptr(), b.ptr());
    drop((a, b));
    assert_eq!(gpu.stats().live, 0);
    assert_eq!(gpu.stats().peak, 512 + (32 << 20));
    let (free, total) = gpu.memory().unwrap();
    assert_eq!((total, total - free), (80 << 30, gpu.stats().reserved));
}

#[test]
fn launches_and_products_are_counted_with_their_bytes() {
    let gpu = card();
    let (x, y) = (gpu.alloc(1000).unwrap(), gpu.alloc(24).unwrap());
    let kernel = Kernel { x: &Slice(x.ptr()), y: &mut Slice(y.ptr()), n: 7, z: None };
    // SAFETY: nothing is launched.
    unsafe { kernel.launch(&gpu, Number::F32, Launch::elements(6)) }.unwrap();
    assert_eq!((gpu.counters().launches, gpu.counters().bytes), (1, 1024));
    let product = gemm([x.ptr(), y.ptr()], 7, 1.0);
    let before = gpu.stats().live;
    // SAFETY: nothing is multiplied.
    unsafe { gpu.gemm(&product) }.unwrap();
    let counted = gpu.counters();
    assert_eq!((counted.products, counted.operations), (1, 2 * 3 * 5 * 7));
    assert_eq!(counted.bytes - 1024, 2 * (21 + 35) + 2 * 4 * 15);
    assert_eq!(gpu.stats().live - before, 32 << 20, "the library's workspace on Hopper");
    // SAFETY: as above.
    unsafe { gpu.gemm(&product) }.unwrap();
    assert_eq!(gpu.stats().live - before, 32 << 20, "which is taken once");
}

#[test]
fn launches_are_booked_by_kernel_until_somebody_asks() {
    let gpu = card();
    let (x, y) = (gpu.alloc(1000).unwrap(), gpu.alloc(24).unwrap());
    for (n, z) in [(7, None), (8, Some(Slice(y.ptr())))] {
        let kernel = Kernel { x: &Slice(x.ptr()), y: &mut Slice(y.ptr()), n, z: z.as_ref() };
        // SAFETY: nothing is launched.
        unsafe { kernel.launch(&gpu, Number::F32, Launch::elements(6)) }.unwrap();
    }
    let booked: Vec<(String, u64, u64)> = gpu.booked().into_iter().map(|(k, it)| (k, it.launches, it.bytes)).collect();
    assert_eq!(booked, [("nobody.f32/kernel".to_owned(), 2, 1024 + 1048)]);
    assert!(gpu.booked().is_empty());
    // A kernel that says what it moves is believed, once.
    gpu.next_moves(10);
    for _ in 0..2 {
        let kernel = Kernel { x: &Slice(x.ptr()), y: &mut Slice(y.ptr()), n: 7, z: None };
        // SAFETY: as above.
        unsafe { kernel.launch(&gpu, Number::F32, Launch::elements(6)) }.unwrap();
    }
    assert_eq!(gpu.booked()["nobody.f32/kernel"].bytes, 10 + 1024);
    assert_eq!(gpu.counters().bytes, 1024 + 1048 + 10 + 1024);
}

#[test]
fn the_clock_goes_at_the_rates_of_the_card() {
    let gpu = card_at(Rates { products: 1e9, kernels: 1e6, bytes: 1e9, gap: 1e-6, ..Rates::ENDLESS });
    let seconds = |work: &dyn Fn()| {
        let [from, to] = [(); 2].map(|()| Event::timed(&gpu).unwrap());
        gpu.compute_stream().record(&from).unwrap();
        work();
        gpu.compute_stream().record(&to).unwrap();
        (gpu.seconds_between(&from, &to).unwrap() * 1e9).round()
    };
    let (x, y) = (gpu.alloc(1000).unwrap(), gpu.alloc(24).unwrap());
    assert_eq!(seconds(&|| ()), 0.0);
    // Nanoseconds: a gap, and 1,024 bytes; operations of a kernel have their own rate.
    // SAFETY: nothing is launched.
    let launch = || unsafe {
        let kernel = Kernel { x: &Slice(x.ptr()), y: &mut Slice(y.ptr()), n: 7, z: None };
        kernel.launch(&gpu, Number::F32, Launch::elements(6)).unwrap();
    };
    assert_eq!(seconds(&launch), 2024.0);
    assert_eq!(seconds(&|| gpu.count_operations(3)), 3000.0);
    let counted = gpu.counters().operations;
    assert_eq!(seconds(&|| gpu.takes_longer_by(5)), 5000.0);
    assert_eq!(seconds(&|| [6, -4].into_iter().for_each(|it| gpu.takes_longer_by(it))), 2000.0);
    assert_eq!(gpu.counters().operations, counted);
    for (k, expected) in [(7, 1000.0 + 2.0 * 3.0 * 5.0 * 7.0), (1, 1000.0 + 2.0 * 8.0 + 4.0 * 15.0)] {
        let product = gemm([x.ptr(), y.ptr()], k, 0.0);
        // SAFETY: nothing is multiplied.
        assert_eq!(seconds(&|| unsafe { gpu.gemm(&product) }.unwrap()), expected, "the longer of operations and bytes");
    }
}

#[test]
fn copies_take_their_time_beside_the_kernels() {
    let gpu = card_at(Rates { kernels: 1e6, host: 1e9, ..Rates::ENDLESS });
    let x = gpu.alloc(40 << 20).unwrap();
    let copy = (40 << 20) as u64 * 1000;
    let waited = || gpu.counters().waited;
    // A second of work hides it.
    let stowed = gpu.stow(&x).unwrap();
    gpu.count_operations(1_000_000);
    stowed.before_compute().unwrap();
    assert_eq!(waited(), 0);
    assert_eq!(gpu.stowable(), 48 << 20, "three pieces");
    // On the way back a hundredth of a second does not.
    let coming = stowed.fetch().unwrap();
    gpu.count_operations(10_000);
    coming.arrive().unwrap();
    assert_eq!(waited(), copy - 10_000_000_000);
    assert_eq!((gpu.counters().copied, gpu.counters().synchronisations), (80 << 20, 0));
}

#[test]
fn pinned_memory_and_streams_need_no_driver() {
    let gpu = card();
    let pinned = Pinned::new(&gpu, 1 << 20).unwrap();
    assert!(pinned.as_slice().iter().all(|it| *it == 0));
    gpu.copy_stream().wait_for_compute().unwrap();
    gpu.copy_stream().before_compute().unwrap();
    gpu.synchronize().unwrap();
    assert_eq!(gpu.counters().synchronisations, 1);
}
