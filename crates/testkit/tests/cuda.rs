//! What a GPU refuses and does, real or not: the limits that a launch has to keep.
#![cfg(target_os = "linux")]

#[path = "cuda/repeated.rs"]
mod repeated;

use halfbyte_cuda::{Buffer, Error, Event, Gemm, Gpu, Launch, Matrix, Number, Pinned, Slice, kernels};
use halfbyte_testkit::cuda::fresh_gpu;
use std::sync::Arc;
use std::time::{Duration, Instant};

kernels! {
    const SOURCE = "testkit", "../src/kernel.cu", over Slice;
    fill as Fill { x: *mut f32, value: f32, n: usize }
    sum_in_shared as SumInShared { sum: *mut f32, value: f32, n: i32 }
}

fn floats(buffer: &Buffer) -> Vec<f32> {
    let mut bytes = vec![0; buffer.bytes()];
    buffer.download(&mut bytes).unwrap();
    bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect()
}

/// Fills `n` numbers of a buffer, which may be one of another device.
fn fill(gpu: &Gpu, x: &Buffer, (value, n): (f32, usize), launch: Launch) -> Result<(), Error> {
    let kernel = Fill { x: &mut Slice(x.ptr()), value, n };
    // SAFETY: each test has memory for as many numbers, or means to be refused.
    unsafe { kernel.launch(gpu, Number::F32, launch) }
}

fn sum_in_shared(gpu: &Arc<Gpu>, bytes: u32) -> Result<f32, Error> {
    let sum = gpu.alloc(4)?;
    let shape = Launch { grid: (1, 1, 1), block: (64, 1, 1), shared: bytes };
    let kernel = SumInShared { sum: &mut Slice(sum.ptr()), value: 2.0, n: bytes as usize / 4 };
    // SAFETY: one number is written, and the kernel has as much shared memory as it is told.
    unsafe { kernel.launch(gpu, Number::F32, shape) }?;
    Ok(floats(&sum)[0])
}

#[test]
fn a_launch_has_the_shared_memory_it_asks_for_whatever_came_before_it() {
    let Some(gpu) = fresh_gpu() else { return };
    // The first needs no permission; the second does, and it is another that has to be asked for.
    for kib in [16, 64, 48, 80, 64, gpu.shared_memory_limit() >> 10] {
        assert_eq!(sum_in_shared(&gpu, kib << 10).unwrap(), 2.0 * 256.0 * kib as f32, "{kib} KiB");
    }
}

#[test]
fn more_shared_memory_than_there_is_is_an_error_that_says_how_much_there_is() {
    let Some(gpu) = fresh_gpu() else { return };
    let limit = gpu.shared_memory_limit();
    let refused = sum_in_shared(&gpu, limit + 4).unwrap_err();
    assert_eq!(refused, Error::SharedMemory { kernel: "sum_in_shared", asked: limit + 4, limit });
    assert!(refused.to_string().contains(&limit.to_string()), "{refused}");
    sum_in_shared(&gpu, limit).unwrap();
}

#[test]
fn grids_and_blocks_beyond_the_limits_are_refused() {
    let Some(gpu) = fresh_gpu() else { return };
    let x = gpu.alloc(4).unwrap();
    let fill = |grid, block| fill(&gpu, &x, (1.0, 1), Launch { grid, block, shared: 0 });
    let one = (1, 1, 1);
    let refused = [
        ((0, 1, 1), one),
        ((1, 1, 0), one),
        ((1, 65536, 1), one),
        ((1, 1, 65536), one),
        (one, (0, 1, 1)),
        (one, (1025, 1, 1)),
        (one, (32, 33, 1)),
        (one, (1, 1, 65)),
    ];
    for (grid, block) in refused {
        let error = fill(grid, block).unwrap_err();
        assert!(matches!(&error, Error::Launch { name, .. } if name == "CUDA_ERROR_INVALID_VALUE"), "{error}");
    }
    fill((1, 65535, 1), one).unwrap();
    fill(one, (32, 32, 1)).unwrap();
    assert_eq!(floats(&x), [1.0]);
}

#[test]
fn uploads_do_not_wait_and_their_source_may_change_at_once() {
    let Some(gpu) = fresh_gpu() else { return };
    let mut buffers: Vec<Buffer> = (0..300).map(|_| gpu.alloc(4 * 100).unwrap()).collect();
    let before = gpu.counters();
    let mut source = [0u8; 400];
    for (i, buffer) in buffers.iter_mut().enumerate() {
        source.as_chunks_mut::<4>().0.fill((i as f32).to_le_bytes());
        buffer.upload(&source).unwrap();
        source.fill(0xEE);
    }
    let asked = gpu.counters().since(&before);
    assert_eq!((asked.uploads, asked.downloads, asked.synchronisations, asked.launches), (300, 0, 0, 0));
    for (i, buffer) in buffers.iter().enumerate() {
        assert_eq!(floats(buffer), [i as f32; 100]);
    }
}

#[test]
fn an_upload_larger_than_the_ring_arrives_whole_behind_what_was_asked_before() {
    let Some(gpu) = fresh_gpu() else { return };
    let n = (37 << 20) / 4 + 3;
    let mut x = gpu.alloc(4 * n).unwrap();
    fill(&gpu, &x, (-1.0, n), Launch::elements(n)).unwrap();
    let values: Vec<u8> = (0..n).flat_map(|it| (it as f32).to_le_bytes()).collect();
    x.upload(&values).unwrap();
    drop(values);
    assert!(floats(&x).iter().enumerate().all(|(i, it)| *it == i as f32));
}

#[test]
fn several_downloads_are_one_wait() {
    let Some(gpu) = fresh_gpu() else { return };
    let [mut a, mut b] = [8, 4].map(|it| gpu.alloc(it).unwrap());
    a.upload(&[1; 8]).unwrap();
    b.upload(&[2; 4]).unwrap();
    let before = gpu.counters();
    let (mut left, mut right) = ([0; 8], [0; 4]);
    gpu.download(&mut [(&a, &mut left), (&b, &mut right)]).unwrap();
    assert_eq!((left, right), ([1; 8], [2; 4]));
    let asked = gpu.counters().since(&before);
    assert_eq!((asked.downloads, asked.synchronisations), (2, 1));
}

#[test]
fn events_tell_the_time_of_the_device_between_them() {
    let Some(gpu) = fresh_gpu() else { return };
    let n = 1 << 22;
    let x = gpu.alloc(4 * n).unwrap();
    fill(&gpu, &x, (1.0, n), Launch::elements(n)).unwrap();
    let [first, second, third] = [(); 3].map(|()| Event::timed(&gpu).unwrap());
    let stream = gpu.compute_stream();
    stream.record(&first).unwrap();
    fill(&gpu, &x, (1.0, n), Launch::elements(n)).unwrap();
    stream.record(&second).unwrap();
    stream.record(&third).unwrap();
    gpu.wait(&third).unwrap();
    assert!([&first, &second, &third].iter().all(|it| gpu.has_passed(it).unwrap()));
    let [kernel, nothing] = [(&first, &second), (&second, &third)].map(|(a, b)| gpu.seconds_between(a, b).unwrap());
    assert!(kernel > 0.0 && nothing >= 0.0 && kernel > nothing, "{kernel} {nothing}");
    let blind = Event::untimed(&gpu).unwrap();
    stream.record(&blind).unwrap();
    gpu.wait(&blind).unwrap();
    assert!(gpu.seconds_between(&first, &blind).is_err());
}

#[test]
fn orders_meet_where_one_waits_for_an_event_of_the_other() {
    let Some(gpu) = fresh_gpu() else { return };
    let mut pinned = Pinned::new(&gpu, 4 * 1000).unwrap();
    pinned.as_mut_slice().as_chunks_mut::<4>().0.fill(5f32.to_le_bytes());
    let mut x = gpu.alloc(4 * 1000).unwrap();
    let passed = Event::untimed(&gpu).unwrap();
    let copies = gpu.copy_stream();
    // SAFETY: the memory lives to the end of the test, and nobody writes it.
    unsafe { copies.upload(&mut x, 0, pinned.as_slice()) }.unwrap();
    copies.record(&passed).unwrap();
    gpu.compute_stream().wait_for(&passed).unwrap();
    let mut y = gpu.alloc(4 * 1000).unwrap();
    y.copy_from(0, &x, 0, 4 * 1000).unwrap();
    assert_eq!(floats(&y), [5.0; 1000]);
}

#[test]
fn what_is_stowed_comes_back_and_its_memory_meets_no_copy() {
    let Some(gpu) = fresh_gpu() else { return };
    // More than two pieces of host memory, and no whole number of them.
    let n = (9 << 20) + 77;
    let sources = [1f32, 2.0, 3.0].map(|value| {
        let mut x = gpu.alloc(4 * n).unwrap();
        x.upload(&value.to_le_bytes().repeat(n)).unwrap();
        x
    });
    let of = |i: usize| {
        let mut x = gpu.alloc(4 * n).unwrap();
        x.copy_from(0, &sources[i], 0, 4 * n).unwrap();
        x
    };
    let before = gpu.counters();
    let mut stowed = Vec::new();
    for i in 0..3 {
        let x = of(i);
        stowed.push(gpu.stow(&x).unwrap());
        stowed.last().unwrap().before_compute().unwrap();
        // The next one gets the same memory, and is written while this one leaves.
    }
    let held = gpu.stowable();
    assert!(gpu.stats().peak < (3 + 2) * 4 * n, "one at a time lay on the device");
    let other = of(2);
    let mut coming: Vec<_> = stowed.into_iter().rev().map(|it| it.fetch().unwrap()).collect();
    let seen = gpu.counters().since(&before);
    assert_eq!((seen.synchronisations, seen.copied), (0, 6 * 4 * n as u64), "nobody waits");
    drop(coming.remove(1));
    let replaced = of(0);
    for (it, value) in coming.into_iter().zip([3.0, 1.0]) {
        assert!(floats(&it.arrive().unwrap()).iter().all(|x| *x == value), "{value}");
    }
    assert!(floats(&other).iter().all(|x| *x == 3.0) && floats(&replaced).iter().all(|x| *x == 1.0));
    drop(gpu.stow(&other).unwrap());
    assert_eq!(gpu.stowable(), held, "host memory is kept and used again");
}

#[test]
fn memory_goes_back_to_the_driver_before_there_is_too_little() {
    let Some(gpu) = fresh_gpu() else { return };
    let [a, b] = [3 << 20, 5 << 20].map(|it| gpu.alloc(it).unwrap());
    drop((a, b));
    let stats = gpu.stats();
    assert_eq!((stats.live, stats.cached, stats.reserved), (0, stats.reserved, stats.peak_reserved));
    // As much as there is: what is kept would not leave room for it.
    let (free, _) = gpu.memory().unwrap();
    let Err(Error::OutOfMemory { .. }) = gpu.alloc(free + stats.cached + (64 << 20)) else {
        panic!("more than there is")
    };
    assert_eq!(gpu.stats().reserved, 0, "all was given back first");
}

/// On the stand-in, where each buffer is the driver's own.
#[test]
fn what_writes_behind_the_end_of_a_buffer_is_found_when_the_buffer_goes() {
    if std::env::var_os("HALFBYTE_CUDA_POOL").is_none() {
        return with(
            ("HALFBYTE_CUDA_POOL", "off"),
            "what_writes_behind_the_end_of_a_buffer_is_found_when_the_buffer_goes",
        );
    }
    let gpu = Gpu::open(0).unwrap();
    if gpu.info().name != "CUDA on the CPU" {
        // On a card that is for compute-sanitizer to find.
        return;
    }
    for (n, is_found) in [(1000, false), (1001, true)] {
        let x = gpu.alloc(4 * 1000).unwrap();
        fill(&gpu, &x, (1.0, n), Launch::elements(n)).unwrap();
        drop(x);
        assert_eq!(gpu.synchronize().is_err(), is_found, "{n} numbers");
    }
}

/// Runs a test of this file in a process of its own, with a setting.
#[track_caller]
fn with((name, value): (&str, &str), test: &str) {
    let Some(libraries) = halfbyte_testkit::cuda::libraries() else { return };
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env(name, value).env("LD_LIBRARY_PATH", libraries);
    let out = child.env_remove("CUDA_VISIBLE_DEVICES").output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}

#[test]
fn each_device_has_memory_and_an_order_of_its_own() {
    if std::env::var_os("CUDA_ON_CPU_DEVICES").is_none() {
        return with(("CUDA_ON_CPU_DEVICES", "2"), "each_device_has_memory_and_an_order_of_its_own");
    }
    let first = Gpu::open(0).unwrap();
    if first.info().name != "CUDA on the CPU" {
        // How many real devices there are is not this test's to say.
        return;
    }
    let second = Gpu::open(1).unwrap();
    assert_eq!((first.info().ordinal, second.info().ordinal), (0, 1));
    let filled = |gpu: &Arc<Gpu>, value: f32| {
        let x = gpu.alloc(4 * 1000).unwrap();
        fill(gpu, &x, (value, 1000), Launch::elements(1000)).unwrap();
        x
    };
    // In turn, so that each has to find its context again.
    let (a, b, c) = (filled(&first, 1.0), filled(&second, 2.0), filled(&first, 3.0));
    assert_eq!((floats(&b)[999], floats(&a)[999], floats(&c)[999]), (2.0, 1.0, 3.0));
    assert_eq!(first.stats().live, 2 * second.stats().live);
    assert_eq!((first.counters().launches, second.counters().launches), (2, 1));
    // What fails on one device leaves the other alone.
    fill(&first, &b, (0.0, 1), Launch::elements(1)).unwrap();
    let fault = first.synchronize().unwrap_err().to_string();
    assert!(fault.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{fault}");
    assert_eq!(floats(&b), [2.0; 1000]);
    let missing = Gpu::open(2).unwrap_err().to_string();
    assert!(missing.contains("cuda:2") && missing.contains("cuda:0 (") && missing.contains("cuda:1 ("), "{missing}");
}

/// `a b` of square matrices, `beta` times what was there added.
fn product(gpu: &Arc<Gpu>, n: usize, beta: f32) -> Vec<f32> {
    let fresh = |value: f32| {
        let mut buffer = gpu.alloc(4 * n * n).unwrap();
        buffer.upload(&value.to_le_bytes().repeat(n * n)).unwrap();
        buffer
    };
    let [a, b, c] = [0.5, 3.0, 7.0].map(fresh);
    let of = |it: &Buffer| Matrix { ptr: it.ptr(), stride: n, transposed: false };
    let (input, output) = (Number::F32, Number::F32);
    let gemm = Gemm {
        m: n,
        n,
        k: n,
        a: of(&a),
        b: of(&b),
        input,
        c: c.ptr(),
        c_stride: n,
        output,
        alpha: 1.0,
        beta,
        onto: None,
    };
    // SAFETY: all three have n rows of n numbers.
    unsafe { gpu.gemm(&gemm) }.unwrap();
    floats(&c)
}

#[test]
fn algorithms_are_tried_out_once_for_a_shape_and_leave_nothing_behind() {
    let (Some(gpu), Some(other)) = (fresh_gpu(), fresh_gpu()) else { return };
    let searches = |gpu: &Gpu| gpu.counters().searches;
    product(&gpu, 37, 0.0);
    assert_eq!(searches(&gpu), 0, "a small product is not worth it");
    for it in [&gpu, &other] {
        it.measure_products(1, false);
    }
    for (done, beta) in [(1, 0.0), (2, 1.0), (2, 0.0), (2, 1.0)] {
        assert_eq!(product(&gpu, 39, beta), vec![1.5 * 39.0 + 7.0 * beta; 39 * 39], "{beta} times what was there");
        assert_eq!(searches(&gpu), done, "a sum is another shape, and each is tried out once");
    }
    product(&other, 39, 1.0);
    assert_eq!(searches(&other), 0, "a device that is opened again knows what was found out");
}

/// The stand-in's first suggestion sleeps for two milliseconds.
#[test]
fn the_fastest_algorithm_is_taken() {
    let Some(gpu) = fresh_gpu() else { return };
    gpu.measure_products(1, false);
    product(&gpu, 8, 0.0);
    let quick = || {
        let begun = Instant::now();
        product(&gpu, 8, 0.0);
        begun.elapsed() < Duration::from_millis(2)
    };
    // A busy machine makes any of them slow; none of the slow ones ever gets quick.
    assert!((0..500).any(|_| quick()));
}
