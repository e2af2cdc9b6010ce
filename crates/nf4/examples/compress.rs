//! Quantises made-up weights in every format: size, error and speed. `cargo run --release --example compress`

#![allow(clippy::print_stdout, reason = "an example talks to the terminal")]

use std::time::Instant;

use half::bf16;
use halfbyte_nf4::{Blocks4, Error, QuantType, kernel_name, quantize_rows8, quantize4};

/// A matrix of a 1.5-billion-parameter model.
const ROWS: usize = 4096;
const COLS: usize = 4096;

fn main() -> Result<(), Error> {
    let weights: Vec<bf16> = (0..ROWS * COLS).map(|i| bf16::from_f32(pseudo_normal(i) * 0.02)).collect();
    let mut decoded = vec![bf16::ZERO; weights.len()];
    println!("kernels: {}, threads: {}", kernel_name(), rayon::current_num_threads());
    println!("{:<22} {:>11} {:>10} {:>14} {:>14}", "format", "bits/weight", "rms error", "quantise G/s", "decode G/s");
    for quant_type in QuantType::ALL {
        for double_quant in [false, true] {
            let (blocks, quantise) = best_of(|| quantize4(&weights, quant_type, 64, double_quant));
            let blocks: Blocks4 = blocks?;
            let ((), decode) = best_of(|| blocks.dequantize(&mut decoded));
            let name = format!("{}{}", quant_type.name(), if double_quant { " double quant" } else { "" });
            report(&name, blocks.bits_per_parameter(), rms(&weights, &decoded), quantise, decode);
        }
    }
    let (rows, quantise) = best_of(|| quantize_rows8(&weights, ROWS, COLS));
    let rows = rows?;
    let ((), decode) = best_of(|| rows.dequantize(&mut decoded));
    report("int8 rows", rows.bits_per_parameter(), rms(&weights, &decoded), quantise, decode);
    Ok(())
}

fn report(name: &str, bits: f64, error: f64, quantise: f64, decode: f64) {
    let rate = |seconds: f64| (ROWS * COLS) as f64 / seconds / 1e9;
    println!("{name:<22} {bits:>11.3} {error:>10.6} {:>14.2} {:>14.2}", rate(quantise), rate(decode));
}

/// The result and the least seconds of ten runs.
fn best_of<R>(mut f: impl FnMut() -> R) -> (R, f64) {
    let mut timed = || {
        let start = Instant::now();
        let result = f();
        (result, start.elapsed().as_secs_f64())
    };
    let mut best = timed();
    for _ in 1..10 {
        let next = timed();
        best = (next.0, best.1.min(next.1));
    }
    best
}

fn rms(a: &[bf16], b: &[bf16]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.to_f32() - b.to_f32()).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

/// The sum of four uniform numbers, which is close enough to a normal one.
fn pseudo_normal(i: usize) -> f32 {
    let mut state = i as u64;
    let mut sum = 0.0;
    for _ in 0..4 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sum += (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    }
    sum * 1.732
}
