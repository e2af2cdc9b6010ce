//! What sources read, and what they refuse.

use half::bf16;

use super::support::{KINDS, Rng, Stored, TABLE, decoded};
use crate::{Compute, Dense, Lut4, Operand, Out, Product, Scales4, matmul};

#[test]
fn pieces_of_rows_agree_with_single_elements() {
    let mut rng = Rng(5);
    for kind in KINDS {
        let stored = Stored::new(kind, 7, 301, &mut rng);
        let source = stored.source();
        let (f32s, rounded) = (decoded(source.as_ref(), Compute::F32), decoded(source.as_ref(), Compute::Bf16));
        for _ in 0..50 {
            let (row, col) = (rng.below(7), rng.below(301));
            let len = rng.below(301 - col + 1);
            let (mut x, mut y) = (vec![0.0; len], vec![bf16::ZERO; len]);
            source.read_f32(row, col, &mut x);
            source.read_bf16(row, col, &mut y);
            let at = row * 301 + col;
            assert_eq!(x, f32s[at..at + len]);
            assert_eq!(y.iter().map(|v| v.to_f32()).collect::<Vec<_>>(), rounded[at..at + len]);
        }
    }
}

#[test]
fn high_nibble_comes_first() {
    let l = Lut4::new((1, 3), &[0x0f, 0x80], &TABLE, Scales4::Plain(&[2.0]), 64);
    assert_eq!(decoded(&l, Compute::F32), [-2.0, 2.0, 0.16]);
}

#[test]
#[should_panic(expected = "needs 2 scales, got 1")]
fn too_few_scales_are_refused() {
    Lut4::new((1, 65), &[0; 33], &TABLE, Scales4::Plain(&[1.0]), 64);
}

#[test]
#[should_panic(expected = "inner dimensions must agree")]
fn inner_dimensions_must_agree() {
    let a = Dense::new(2, 3, &[0.0f32; 6]);
    matmul(&Product::new(Operand::new(&a), Operand::new(&a), Compute::F32), Out::F32(&mut [0.0; 6]));
}
