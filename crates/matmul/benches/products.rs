//! Products of a LLaMA's shapes, dense and from 4-bit blocks, on one thread and two; and the register peak of one core,
//! which bounds them. `cargo bench -p halfbyte-matmul`; `HALFBYTE_MATMUL_KERNEL` chooses the kernel.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use halfbyte_matmul::{Compute, Dense, Lut4, Operand, Out, Product, Scales4, Source, matmul, register_peak};

/// (m, n, k): up and down of a small model, a square, and a slice of a 7 B model.
const SHAPES: [(usize, usize, usize); 4] = [(512, 1536, 576), (512, 576, 1536), (2048, 2048, 2048), (4096, 4096, 512)];

/// Time of 10^9 operations on registers alone. Measured here, the clock and neighbours are those of the products.
fn peak(c: &mut Criterion) {
    let mut group = c.benchmark_group("register peak");
    group.throughput(Throughput::Elements(1_000_000_000));
    for (name, compute) in [("bf16", Compute::Bf16), ("f32", Compute::F32)] {
        let timed = |iterations: u64| Duration::from_secs_f64(iterations as f64 * 1e9 / register_peak(compute));
        group.bench_function(name, |b| b.iter_custom(timed));
    }
    group.finish();
}

fn products(c: &mut Criterion) {
    for (m, n, k) in SHAPES {
        let mut group = c.benchmark_group(format!("{m}x{n}x{k}"));
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let (x, w) = (values(m * k), values(n * k));
        let packed: Vec<u8> = w.iter().step_by(2).map(|v| (v.to_bits() >> 3) as u8).collect();
        let table: [f32; 16] = std::array::from_fn(|i| i as f32 / 7.5 - 1.0);
        let scales = vec![0.5f32; (n * k).div_ceil(64)];
        let lut = |rows, cols| Lut4::new((rows, cols), &packed, &table, Scales4::Plain(&scales), 64);
        // A weight (n, k) as the forward pass reads it, and one (k, n) as the backward pass does.
        let (dense, blocks, transposed) = (Dense::new(n, k, &w), lut(n, k), lut(k, n));
        let sides: [(&str, Operand<'_>); 3] = [
            ("dense", Operand::new(&dense).t()),
            ("4-bit", Operand::new(&blocks).t()),
            ("4-bit transposed", Operand::new(&transposed)),
        ];
        let left = Dense::new(m, k, &x);
        let left: &dyn Source = &left;
        let mut out = vec![bf16::ZERO; m * n];
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of two threads");
            for (name, b) in sides {
                let product = Product::new(Operand::new(left), b, Compute::Bf16);
                let out = &mut out;
                group.bench_function(format!("{name}, {threads}"), |bench| {
                    pool.install(|| bench.iter(|| matmul(black_box(&product), Out::Bf16(out))));
                });
            }
        }
        group.finish();
    }
}

fn values(len: usize) -> Vec<bf16> {
    let mut seed = 1u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((seed >> 8) as f32 / (1 << 24) as f32 - 0.5)
    };
    (0..len).map(|_| next()).collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = peak, products
}
criterion_main!(benches);
