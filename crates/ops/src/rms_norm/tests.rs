use super::{RmsNorm, rms_norm};
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise, noise_in};

const EPS: f32 = 1e-5;

struct Oracle {
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}

fn oracle(x: &[f64], w: &[f64], dy: &[f64]) -> Oracle {
    let c = w.len();
    let mut it = Oracle { y: vec![], dx: vec![], dw: vec![0.0; c] };
    for (x, dy) in x.chunks(c).zip(dy.chunks(c)) {
        let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / c as f64 + f64::from(EPS)).sqrt();
        let mean = (0..c).map(|i| dy[i] * w[i] * x[i] * r).sum::<f64>() / c as f64;
        for i in 0..c {
            it.y.push(w[i] * x[i] * r);
            it.dx.push(r * (dy[i] * w[i] - x[i] * r * mean));
            it.dw[i] += dy[i] * x[i] * r;
        }
    }
    it
}

/// Roundings of the normalised value and of the result, each relative; `terms` are summed in f32.
fn roundings(dtype: DType, terms: usize) -> f64 {
    tolerance(dtype, terms) + tolerance(dtype, 1)
}

#[test]
fn values_and_gradients_agree_with_f64_in_every_dtype() {
    for dtype in FLOATS {
        for shape in [[1, 1], [3, 5], [33, 64], [130, 67], [2, 577]] {
            let x = Param::new("x", noise(&shape, dtype, 1));
            let w = Param::new("w", noise(&[shape[1]], DType::F32, 2));
            let dy = noise(&shape, dtype, 3);
            let tape = Tape::recording();
            let y = rms_norm(&tape, &tape.param(&x), &tape.param(&w), EPS).unwrap();
            assert_eq!((y.value().shape(), y.value().dtype()), (&shape[..], dtype));
            let expected = oracle(&rounded(&x.value(), dtype), &rounded(&w.value(), DType::F32), &rounded(&dy, dtype));
            let tolerance = roundings(dtype, shape[1]);
            assert_close("y", &y.value().to_f32_vec(), &expected.y, tolerance);
            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            assert_close("dx", &grads.get(&x).unwrap().to_f32_vec(), &expected.dx, tolerance);
            // Normalised values are about 1, so their roundings add up to at most |dy| <= 2 a row, and the f32 sum's.
            let sum = (shape[0] as f64).sqrt() * 4.0 * roundings(dtype, 1) + roundings(DType::F32, shape[0]);
            assert_close("dw", grads.get(&w).unwrap().data(), &expected.dw, sum);
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let x = Param::new("x", noise(&[4, 7], DType::F32, 1));
    let w = Param::new("w", noise(&[7], DType::F32, 2));
    gradcheck(&[x.clone(), w], |tape, p| rms_norm(tape, &tape.param(&p[0]), &tape.param(&p[1]), EPS));
    let frozen = noise(&[7], DType::F32, 2);
    gradcheck(&[x], |tape, p| rms_norm(tape, &tape.param(&p[0]), &Var::constant(frozen.clone()), EPS));
}

#[test]
fn the_normalised_value_is_rounded_before_the_weight_as_in_transformers() {
    let x = noise_in(&[5, 64], DType::Bf16, 1, -30.0, 30.0);
    let w = noise(&[64], DType::Bf16, 2);
    let y = rms_norm(&Tape::disabled(), &Var::constant(x.clone()), &Var::constant(w.clone()), EPS).unwrap();
    let (x, w) = (rounded(&x, DType::Bf16), rounded(&w, DType::Bf16));
    let mut differs = 0;
    for (x, y) in x.chunks(64).zip(y.value().to_f32_vec().chunks(64)) {
        let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / 64.0 + f64::from(EPS)).sqrt();
        for ((x, w), y) in x.iter().zip(&w).zip(y) {
            let bf16 = |v: f64| halfbyte_tensor::bf16::from_f64(v).to_f64();
            assert_eq!(f64::from(*y), bf16(w * bf16(x * r)));
            differs += usize::from(f64::from(*y) != bf16(w * x * r));
        }
    }
    assert!(differs > 0, "the test cannot tell one rounding from two");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = || {
        let x = Param::new("x", noise(&[301, 65], DType::F32, 1));
        let w = Param::new("w", noise(&[65], DType::F32, 2));
        let tape = Tape::recording();
        let y = rms_norm(&tape, &tape.param(&x), &tape.param(&w), EPS).unwrap();
        let loss = with_gradient(&tape, &y, &noise(&[301, 65], DType::F32, 3));
        let grads = tape.backward(loss).unwrap();
        [y.value().to_f32_vec(), grads.get(&x).unwrap().to_f32_vec(), grads.get(&w).unwrap().to_f32_vec()]
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}

#[test]
fn a_weight_of_another_length_is_refused() {
    let x = Var::constant(noise(&[2, 6], DType::F32, 1));
    let w = Var::constant(Tensor::from_vec(&[5], vec![1.0f32; 5]));
    let error = rms_norm(&Tape::disabled(), &x, &w, EPS).unwrap_err().to_string();
    assert_eq!(error, "rms_norm: expected a weight of shape (6), one a channel, got shape [5]");
}

#[test]
fn a_short_weight_normalises_every_head_by_itself() {
    for dtype in FLOATS {
        let (x, dy) = (noise(&[5, 12], dtype, 7), noise(&[5, 12], dtype, 8));
        let w = noise(&[4], DType::F32, 9);
        let run = |shape: &[usize]| {
            let (x, w) = (Param::new("x", x.reshape(shape).unwrap()), Param::new("w", w.clone()));
            let tape = Tape::recording();
            let y = rms_norm(&tape, &tape.param(&x), &tape.param(&w), EPS).unwrap();
            let value = y.value().to_f32_vec();
            let loss = with_gradient(&tape, &y, &dy.reshape(shape).unwrap());
            let grads = tape.backward(loss).unwrap();
            [value, grads.get(&x).unwrap().to_f32_vec(), grads.get(&w).unwrap().to_f32_vec()]
        };
        assert_eq!(run(&[5, 12]), run(&[15, 4]), "{dtype}");
    }
    let x = Var::constant(noise(&[2, 10], DType::F32, 1));
    let error = rms_norm(&Tape::disabled(), &x, &Var::constant(noise(&[4], DType::F32, 1)), EPS).unwrap_err();
    assert_eq!(error.to_string(), "rms_norm: expected a weight of shape (10), one a channel, got shape [4]");
}

#[test]
fn a_weight_stored_off_one_is_the_weight_with_one_added() {
    for rounds_last in [false, true] {
        let (x, dy) = (noise(&[5, 12], DType::F32, 7), noise(&[5, 12], DType::F32, 8));
        let w = noise(&[12], DType::F32, 9);
        let run = |w: Tensor, offset: f32| {
            let (x, w) = (Param::new("x", x.clone()), Param::new("w", w));
            let tape = Tape::recording();
            let norm = RmsNorm { eps: EPS, offset, rounds_last };
            let y = rms_norm(&tape, &tape.param(&x), &tape.param(&w), norm).unwrap();
            let value = y.value().to_f32_vec();
            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            [value, grads.get(&x).unwrap().to_f32_vec(), grads.get(&w).unwrap().to_f32_vec()]
        };
        let whole = Tensor::from_vec(&[12], w.data::<f32>().iter().map(|it| it + 1.0).collect());
        assert_eq!(run(w, 1.0), run(whole, 0.0));
    }
}

#[test]
fn activations_without_channels_are_refused() {
    let w = Var::constant(Tensor::from_vec(&[0], Vec::<f32>::new()));
    for shape in [&[][..], &[3, 0]] {
        let x = Var::constant(Tensor::zeros(shape, DType::F32));
        let error = rms_norm(&Tape::disabled(), &x, &w, EPS).unwrap_err().to_string();
        assert!(error.contains("activations of shape (rows, channels)"), "{error}");
    }
}
