//! A stranger's program: half a byte a weight, with nothing of Halfbyte but the codec.

use halfbyte_nf4::{QuantType, quantize_rows8, quantize4};

fn main() -> Result<(), halfbyte_nf4::Error> {
    let weights: Vec<f32> = (0..64 * 130 + 7).map(|i| (i as f32 * 0.7).sin() * 0.05).collect();
    let blocks = quantize4(&weights, QuantType::Nf4, 64, true)?;
    assert!(blocks.bits_per_parameter() < 4.5);

    let mut decoded = vec![0.0f32; weights.len()];
    blocks.dequantize(&mut decoded);
    // The widest gap between two levels of NF4 is below a third of the largest magnitude.
    let worst = weights.iter().zip(&decoded).map(|(w, d)| (w - d).abs()).fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.05 * 0.2, "{worst}");

    let rows = quantize_rows8(&weights[..64 * 130], 64, 130)?;
    let mut decoded = vec![0.0f32; 64 * 130];
    rows.dequantize(&mut decoded);
    assert!(weights.iter().zip(&decoded).all(|(w, d)| (w - d).abs() <= 0.05 / 127.0));

    assert!(quantize4(&weights, QuantType::Nf4, 65, false).is_err(), "a block size that is not in the format");
    Ok(())
}
