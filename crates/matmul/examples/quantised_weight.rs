//! A product with a 4-bit weight, forward and backward, from the same 4-bit bytes.
#![allow(clippy::print_stdout, reason = "an example prints")]

use halfbyte_matmul::{Compute, Dense, Lut4, Operand, Out, Product, Scales4, kernel_name, matmul};

fn main() {
    // A (3, 4) weight: 4-bit codes, high nibble first, a scale for each block of 4.
    let table: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
    let packed = [0x9a, 0xbc, 0x7f, 0x80, 0x88, 0x97];
    let w = Lut4::new((3, 4), &packed, &table, Scales4::Plain(&[0.5, 1.0, 2.0]), 4);

    let x = Dense::new(2, 4, &[1.0f32, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
    let bias = [0.25f32; 3];
    let mut y = [0.0f32; 6];
    let forward = Product::new(Operand::new(&x), Operand::new(&w).t(), Compute::Bf16);
    matmul(&Product { bias: Some(&bias), ..forward }, Out::F32(&mut y));
    println!("y (2, 3) = x · Wᵀ + bias = {y:?}  ({})", kernel_name(Compute::Bf16));

    let dy = Dense::new(2, 3, &y);
    let mut dx = [0.0f32; 8];
    matmul(&Product::new(Operand::new(&dy), Operand::new(&w), Compute::Bf16), Out::F32(&mut dx));
    println!("dx (2, 4) = dy · W = {dx:?}");
}
