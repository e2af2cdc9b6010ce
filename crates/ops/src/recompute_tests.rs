//! Ops whose output is computed again where a backward pass needs it.

use crate::{
    gated::{Gate, gated},
    gelu::{Gelu, gelu},
    layer_norm::layer_norm,
    rms_norm::{RmsNorm, rms_norm},
};
use halfbyte_autograd::{Kept, Tape, Var};
use halfbyte_tensor::DType;
use halfbyte_testkit::noise;

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let tape = Tape::recording();
        let var = |shape: &[usize], seed| Var::constant(noise(shape, dtype, seed));
        let (x, y, w, b) = (var(&[9, 40], 1), var(&[9, 40], 2), var(&[40], 3), var(&[40], 4));
        let all = [
            rms_norm(&tape, &x, &w, 1e-5).unwrap(),
            layer_norm(&tape, &x, &w, &b, 1e-5).unwrap(),
            rms_norm(&tape, &x, &w, RmsNorm { eps: 1e-5, offset: 1.0, rounds_last: true }).unwrap(),
            gated(&tape, &x, &y, Gate::Silu).unwrap(),
            gated(&tape, &x, &y, Gate::GeluTanh).unwrap(),
            gelu(&tape, &x, Gelu::Tanh).unwrap(),
        ];
        for y in all {
            let kept = y.keep();
            assert!(matches!(kept, Kept::Recipe(_)));
            assert_eq!(kept.value().unwrap().to_f32_vec(), y.value().to_f32_vec());
        }
    }
}
