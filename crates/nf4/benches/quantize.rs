//! Quantising and decoding a bf16 matrix of 4096 x 4096. `cargo bench -p halfbyte-nf4`

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use halfbyte_nf4::{QuantType, quantize_rows8, quantize4};

const SIDE: usize = 4096;

fn formats(c: &mut Criterion) {
    let weights: Vec<bf16> =
        (0..SIDE * SIDE).map(|i| bf16::from_f32(((i * 7919) % 4093) as f32 / 4093.0 - 0.5)).collect();
    let mut decoded = vec![bf16::ZERO; weights.len()];
    let mut group = c.benchmark_group("4096x4096");
    group.throughput(Throughput::Elements((SIDE * SIDE) as u64));
    for (name, kind) in [("nf4", QuantType::Nf4), ("fp4", QuantType::Fp4), ("int4", QuantType::Int4)] {
        let quantize = || quantize4(black_box(&weights), kind, 64, true).expect("weights without NaN");
        group.bench_function(format!("quantize {name}"), |b| b.iter(quantize));
        let blocks = quantize();
        group.bench_function(format!("decode {name}"), |b| b.iter(|| blocks.dequantize(black_box(&mut decoded))));
    }
    let quantize = || quantize_rows8(black_box(&weights), SIDE, SIDE).expect("weights without NaN");
    group.bench_function("quantize int8", |b| b.iter(quantize));
    let rows = quantize();
    group.bench_function("decode int8", |b| b.iter(|| rows.dequantize(black_box(&mut decoded))));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = formats
}
criterion_main!(benches);
