//! GFLOP/s of products against the register peak of one core.
//!
//! `cargo run --release --example bench [m n k]`; `HALFBYTE_MATMUL_KERNEL` chooses the kernel.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::{Duration, Instant};

use half::bf16;
use halfbyte_matmul::{
    Compute, Dense, Lut4, Operand, Out, Product, Scales4, Source, kernel_name, matmul, register_peak,
};

/// A shape and which side of W the product sees.
struct Shape {
    dims: (usize, usize, usize),
    note: &'static str,
}

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let shape = |m, n, k, note| Shape { dims: (m, n, k), note };
    let mut shapes = vec![
        shape(512, 1536, 576, "up"),
        shape(512, 576, 1536, "down"),
        shape(512, 192, 576, "k, v"),
        shape(2048, 2048, 2048, "square"),
        shape(512, 16, 576, "x·Aᵀ"),
        shape(512, 576, 16, "·Bᵀ"),
        shape(1, 1536, 576, "generation"),
        shape(1, 49152, 576, "head"),
    ];
    if let [m, n, k] = given[..] {
        shapes = vec![shape(m, n, k, "given")];
    }
    for compute in [Compute::Bf16, Compute::F32] {
        let peak = register_peak(compute) * 1e-9;
        println!("{compute:?}: kernel {}, register peak of one core {peak:.1} GFLOP/s", kernel_name(compute));
        println!("{:>20} {:<11} {:<16} {:>12} {:>22} {:>22}", "m x n x k", "", "", "CPU time", "1 thread", "2 threads");
        for s in &shapes {
            bench_shape(s, compute, peak);
        }
    }
}

fn bench_shape(shape: &Shape, compute: Compute, peak: f64) {
    let (m, n, k) = shape.dims;
    let mut seed = 1u32;
    let mut values = |len: usize| -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| next()).collect()
    };
    let (x, w) = (values(m * k), values(n * k));
    let (x16, w16): (Vec<bf16>, Vec<bf16>) =
        (x.iter().map(|&v| bf16::from_f32(v)).collect(), w.iter().map(|&v| bf16::from_f32(v)).collect());
    let packed: Vec<u8> = w.chunks(2).map(|p| (p[0].to_bits() >> 9) as u8).collect();
    let table: [f32; 16] = std::array::from_fn(|i| i as f32 / 7.5 - 1.0);
    let scales = vec![0.5f32; (n * k).div_ceil(64)];
    for trans in [true, false] {
        let (r, c) = if trans { (n, k) } else { (k, n) };
        let dense32 = Dense::new(r, c, &w);
        let dense16 = Dense::new(r, c, &w16);
        let lut = Lut4::new((r, c), &packed, &table, Scales4::Plain(&scales), 64);
        let dense: &dyn Source = if compute == Compute::Bf16 { &dense16 } else { &dense32 };
        let (left32, left16) = (Dense::new(m, k, &x), Dense::new(m, k, &x16));
        let left: &dyn Source = if compute == Compute::Bf16 { &left16 } else { &left32 };
        let side = if trans { "x·Wᵀ" } else { "x·W" };
        for (name, b) in [("dense", dense), ("4-bit", &lut as &dyn Source)] {
            let b = if trans { Operand::new(b).t() } else { Operand::new(b) };
            line(shape, &format!("{side} {name}"), &Product::new(Operand::new(left), b, compute), peak);
        }
    }
    // The gradient of a weight: dyᵀ (n, m) · x (m, k), both read across their rows.
    let (dy32, dy16) = (Dense::new(k, m, &x), Dense::new(k, m, &x16));
    let (x32, xb) = (Dense::new(k, n, &w), Dense::new(k, n, &w16));
    let (a, b): (&dyn Source, &dyn Source) = if compute == Compute::Bf16 { (&dy16, &xb) } else { (&dy32, &x32) };
    line(shape, "aᵀ·b dense", &Product::new(Operand::new(a).t(), Operand::new(b), compute), peak);
}

fn line(shape: &Shape, name: &str, p: &Product<'_>, peak: f64) {
    let (m, n, k) = shape.dims;
    let mut text = format!("{:>20} {:<11} {:<16}", format!("{m} x {n} x {k}"), shape.note, name);
    for threads in [1, 2] {
        let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(threads).build() else { continue };
        let (best, median, cpu) = pool.install(|| time(p, m * n));
        let rate = 2.0 * (m * n * k) as f64 * 1e-9;
        if let (1, Some(cpu)) = (threads, cpu) {
            text += &format!(" {:6.1} {:3.0} %", rate / cpu, 100.0 * rate / cpu / peak);
        }
        let share = 100.0 * rate / best / (peak * threads as f64);
        text += &format!(" {:7.1} ({:6.1}) {share:3.0} %", rate / best, rate / median);
    }
    println!("{text}");
}

/// Seconds that this thread has run, where the system tells: a figure that neighbours on the machine disturb less.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse::<f64>().ok().map(|ns| ns * 1e-9)
}

/// Best, median and, if one thread does it all, CPU seconds.
fn time(p: &Product<'_>, len: usize) -> (f64, f64, Option<f64>) {
    let mut out = vec![0.0f32; len];
    let mut times = Vec::new();
    matmul(p, Out::F32(&mut out));
    let cpu = cpu_seconds();
    let begin = Instant::now();
    while times.len() < 10 || (begin.elapsed() < Duration::from_millis(250) && times.len() < 20_000) {
        let start = Instant::now();
        matmul(p, Out::F32(&mut out));
        times.push(start.elapsed().as_secs_f64());
    }
    let cpu = cpu.zip(cpu_seconds()).map(|(from, to)| (to - from) / times.len() as f64);
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2], cpu)
}
