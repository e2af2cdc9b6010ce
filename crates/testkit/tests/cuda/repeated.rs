//! Passes over a GPU that come again, and are started as a whole.

use halfbyte_cuda::{Buffer, Error, Event, Gpu, Launch};
use halfbyte_testkit::cuda::fresh_gpu;
use std::cell::Cell;
use std::sync::Arc;

const N: usize = 1000;

fn fill(gpu: &Gpu, x: &Buffer, value: f32) -> Result<(), Error> {
    super::fill(gpu, x, (value, N), Launch::elements(N))
}

fn floats(buffer: &Buffer) -> Result<Vec<f32>, Error> {
    let mut bytes = vec![0; buffer.bytes()];
    buffer.download(&mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect())
}

fn digest(x: &Buffer) -> Result<u64, Error> {
    Ok(floats(x)?.iter().map(|it| u64::from(it.to_bits())).sum())
}

/// A pass of a few kernels and copies: what it gives is half `value` and half what `input` holds.
fn mixed(gpu: &Arc<Gpu>, input: &Buffer, value: f32) -> Result<Buffer, Error> {
    let (a, mut b) = (gpu.alloc(4 * N)?, gpu.alloc(4 * N)?);
    fill(gpu, &a, value)?;
    b.zero()?;
    b.copy_from(0, &a, 0, 2 * N)?;
    b.copy_from(2 * N, input, 2 * N, 2 * N)?;
    Ok(b)
}

/// How many passes were started as a whole, and kernels by themselves.
fn asked(gpu: &Gpu) -> (u64, u64) {
    let it = gpu.counters();
    (it.graphs, it.launches)
}

/// A device with a buffer of input, and nothing else.
fn device() -> Option<(Arc<Gpu>, Buffer)> {
    let gpu = fresh_gpu()?;
    let input = gpu.alloc(4 * N).unwrap();
    // Memory for whatever a pass needs, as the step before leaves it.
    drop([0; 4].map(|_| gpu.alloc(4 * N).unwrap()));
    Some((gpu, input))
}

#[test]
fn the_fourth_pass_that_asks_for_the_same_is_one_launch_and_reads_what_is_there_then() {
    let Some((gpu, input)) = device() else { return };
    for round in 0..6u32 {
        let held = 10.0 + round as f32;
        fill(&gpu, &input, held).unwrap();
        let before = asked(&gpu);
        let done = gpu.repeated(1, &digest, &mut || mixed(&gpu, &input, 3.0)).unwrap();
        let after = asked(&gpu);
        let numbers = floats(&done).unwrap();
        assert!(numbers[..N / 2].iter().all(|it| *it == 3.0) && numbers[N / 2..].iter().all(|it| *it == held));
        // The third is run by itself, and kept, and compared with what was kept.
        let expected = [(0, 1), (0, 1), (1, 2), (1, 0), (1, 0), (1, 0)][round as usize];
        assert_eq!((after.0 - before.0, after.1 - before.1), expected, "round {round}");
    }
    assert_eq!(gpu.why_not_repeated(), None);
}

#[test]
fn passes_of_two_keys_and_of_memory_that_lies_elsewhere_are_told_apart() {
    let Some((gpu, input)) = device() else { return };
    fill(&gpu, &input, 7.0).unwrap();
    let pass = |key: u64| {
        let done = gpu.repeated(key, &digest, &mut || mixed(&gpu, &input, key as f32)).unwrap();
        assert_eq!(floats(&done).unwrap()[0], key as f32);
    };
    for _ in 0..5 {
        [1, 2].into_iter().for_each(pass);
    }
    let (graphs, launches) = asked(&gpu);
    assert_eq!(graphs, 6, "three of each");
    // Somebody holds memory that the passes had: a graph would write it.
    let held = gpu.alloc(4 * N).unwrap();
    fill(&gpu, &held, 1.0).unwrap();
    [1, 2].into_iter().for_each(pass);
    assert_eq!(floats(&held).unwrap(), [1.0; N]);
    assert_eq!(asked(&gpu), (graphs, launches + 3), "by themselves");
    // Both places are known from then on.
    (0..4).for_each(|_| pass(1));
    drop(held);
    [1, 2].into_iter().for_each(pass);
    assert_eq!(asked(&gpu).0, graphs + 3 + 2);
    assert_eq!(gpu.why_not_repeated(), None);
}

#[test]
fn a_pass_that_asks_for_something_else_after_all_is_run_again_and_after_eight_no_graph_is_trusted() {
    let Some((gpu, input)) = device() else { return };
    fill(&gpu, &input, 7.0).unwrap();
    let value = Cell::new(1.0);
    let pass = || {
        let done = gpu.repeated(1, &digest, &mut || mixed(&gpu, &input, value.get())).unwrap();
        assert_eq!(floats(&done).unwrap()[0], value.get());
    };
    for time in 0..8 {
        assert_eq!(gpu.why_not_repeated(), None, "{time} times");
        // Watched, kept, launched; then another value under the same key.
        (0..4).for_each(|_| pass());
        value.set(value.get() + 1.0);
        let before = asked(&gpu);
        pass();
        let after = asked(&gpu);
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1), "started in vain, and run by itself");
    }
    assert!(gpu.why_not_repeated().unwrap().contains("something else"));
    let before = asked(&gpu);
    (0..5).for_each(|_| pass());
    assert_eq!(asked(&gpu), (before.0, before.1 + 5));
}

#[test]
fn what_waits_or_goes_to_the_host_is_never_part_of_a_graph() {
    let Some((gpu, input)) = device() else { return };
    fill(&gpu, &input, 7.0).unwrap();
    let with = |more: &dyn Fn(&mut Buffer) -> Result<(), Error>| {
        for _ in 0..5 {
            let pass = &mut || {
                let mut done = mixed(&gpu, &input, 2.0)?;
                more(&mut done)?;
                Ok::<_, Error>(done)
            };
            let done = gpu.repeated(1, &digest, pass).unwrap();
            assert_eq!(floats(&done).unwrap()[..N / 2], [2.0; N / 2]);
        }
        assert_eq!(asked(&gpu).0, 0);
    };
    with(&|_| gpu.synchronize());
    with(&|it| floats(it).map(drop));
    with(&|it| it.upload(&[2.0f32.to_le_bytes(); N].concat()));
    with(&|_| gpu.copy_stream().wait_for_compute());
    assert_eq!(gpu.why_not_repeated(), None);
}

/// Work on the side stream belongs to a pass if the compute stream waits for it before the end.
#[test]
fn what_goes_on_beside_is_part_of_it() {
    let Some((gpu, input)) = device() else { return };
    let (free, done) = (Event::untimed(&gpu).unwrap(), Event::untimed(&gpu).unwrap());
    let pass = |joins: bool| {
        let x = gpu.alloc(4 * N)?;
        fill(&gpu, &x, 1.0)?;
        gpu.compute_stream().record(&free)?;
        gpu.side_stream().wait_for(&free)?;
        gpu.beside(|| fill(&gpu, &x, 2.0))?;
        gpu.side_stream().record(&done)?;
        if joins {
            gpu.compute_stream().wait_for(&done)?;
        }
        Ok::<_, Error>(x)
    };
    for _ in 0..5 {
        let x = gpu.repeated(1, &digest, &mut || pass(true)).unwrap();
        assert_eq!(floats(&x).unwrap(), [2.0; N]);
    }
    assert_eq!(asked(&gpu).0, 3);
    // The driver makes no graph of what nobody waits for; it is run by itself.
    for _ in 0..5 {
        gpu.repeated(2, &|_: &Buffer| Ok(0), &mut || pass(false)).unwrap();
        gpu.side_stream().synchronize().unwrap();
    }
    assert_eq!(asked(&gpu).0, 3);
    fill(&gpu, &input, 5.0).unwrap();
    assert_eq!(floats(&input).unwrap(), [5.0; N], "the streams are free again");
}

#[test]
fn a_failure_within_is_the_pass_s_own() {
    let Some((gpu, input)) = device() else { return };
    let fails = Cell::new(false);
    let run = || {
        let pass = &mut || match fails.get() {
            true => Err(Error::NoDevice),
            false => mixed(&gpu, &input, 2.0),
        };
        gpu.repeated(1, &digest, pass)
    };
    for _ in 0..4 {
        run().unwrap();
    }
    fails.set(true);
    assert_eq!(run().unwrap_err(), Error::NoDevice);
    fails.set(false);
    assert_eq!(floats(&run().unwrap()).unwrap()[0], 2.0);
    assert_eq!(gpu.clear_fault(), None);
}

/// What five passes asked for that gave what they should, and why they were not started as a whole.
fn five_passes() -> Option<((u64, u64), Option<String>)> {
    let (gpu, input) = device()?;
    fill(&gpu, &input, 7.0).unwrap();
    for _ in 0..5 {
        let done = gpu.repeated(1, &digest, &mut || mixed(&gpu, &input, 2.0)).unwrap();
        let numbers = floats(&done).unwrap();
        assert_eq!((numbers[0], numbers[N - 1]), (2.0, 7.0));
    }
    Some((asked(&gpu), gpu.why_not_repeated()))
}

#[test]
fn a_graph_that_does_something_else_is_found_out_before_its_result_is_used() {
    if std::env::var_os("CUDA_ON_CPU_GRAPHS").is_none() {
        return super::with(
            ("CUDA_ON_CPU_GRAPHS", "torn"),
            "repeated::a_graph_that_does_something_else_is_found_out_before_its_result_is_used",
        );
    }
    let Some((asked, why)) = five_passes() else { return };
    assert!(why.unwrap().contains("another result"));
    assert_eq!(asked, (1, 8), "all by themselves, and once more to be kept, and again without");
}

#[test]
fn a_driver_that_makes_no_graphs_is_asked_once() {
    if std::env::var_os("CUDA_ON_CPU_GRAPHS").is_none() {
        return super::with(("CUDA_ON_CPU_GRAPHS", "none"), "repeated::a_driver_that_makes_no_graphs_is_asked_once");
    }
    let Some(it) = five_passes() else { return };
    assert_eq!(it, ((0, 7), None), "the third pass is run again once the driver has refused");
}

#[test]
fn graphs_can_be_done_without() {
    if std::env::var_os("HALFBYTE_CUDA_GRAPH").is_none() {
        return super::with(("HALFBYTE_CUDA_GRAPH", "off"), "repeated::graphs_can_be_done_without");
    }
    let Some(it) = five_passes() else { return };
    assert_eq!(it, ((0, 6), None));
}
