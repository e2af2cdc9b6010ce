use super::{Gelu, gelu};
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise, noise_in};

fn inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}

/// How likely a draw from the normal distribution is below `x`: a half, and the integral of the density by Simpson's rule.
fn below(x: f64) -> f64 {
    const PIECES: usize = 2000;
    let (step, end) =
        (x / PIECES as f64, |it: usize| if it == 0 || it == PIECES { 1.0 } else { 2.0 + 2.0 * (it % 2) as f64 });
    0.5 + step / 3.0 * (0..=PIECES).map(|it| end(it) * density(it as f64 * step)).sum::<f64>()
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

fn value(x: f64, kind: Gelu) -> f64 {
    if kind == Gelu::Exact { x * below(x) } else { 0.5 * x * (1.0 + inner(x).tanh()) }
}

fn slope(x: f64, kind: Gelu) -> f64 {
    if kind == Gelu::Exact {
        return below(x) + x * density(x);
    }
    let t = inner(x).tanh();
    let u = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * u
}

/// One rounding of the result. In f32 also those inside: four of the argument `v`, on which results depend by at most 4 a
/// unit of `ln v`, times |dy| <= 2, and eight more.
fn roundings(dtype: DType) -> f64 {
    const F32: f64 = 40.0 / (1 << 24) as f64;
    match dtype {
        DType::Bf16 => 2f64.powi(-8) + F32,
        DType::F16 => 2f64.powi(-11) + F32,
        _ => F32,
    }
}

#[test]
fn values_and_gradients_agree_with_f64_in_every_dtype() {
    for (dtype, kind) in FLOATS.into_iter().flat_map(|it| [(it, Gelu::Tanh), (it, Gelu::Exact)]) {
        for shape in [&[1, 1][..], &[3, 5], &[17, 129]] {
            let x = Param::new("x", noise_in(shape, dtype, 1, -6.0, 6.0));
            let dy = noise(shape, dtype, 3);
            let tape = Tape::recording();
            let y = gelu(&tape, &tape.param(&x), kind).unwrap();
            assert_eq!((y.value().shape(), y.value().dtype()), (shape, dtype));
            let (v, d) = (rounded(&x.value(), dtype), rounded(&dy, dtype));
            let expected: Vec<f64> = v.iter().map(|x| value(*x, kind)).collect();
            assert_close("y", &y.value().to_f32_vec(), &expected, roundings(dtype));
            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            let expected: Vec<f64> = v.iter().zip(&d).map(|(x, d)| d * slope(*x, kind)).collect();
            assert_close("dx", &grads.get(&x).unwrap().to_f32_vec(), &expected, roundings(dtype));
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    for kind in [Gelu::Tanh, Gelu::Exact] {
        gradcheck(&[Param::new("x", noise(&[4, 5], DType::F32, 1))], |tape, p| gelu(tape, &tape.param(&p[0]), kind));
    }
}

#[test]
fn far_from_zero_it_is_zero_or_the_identity() {
    let tape = Tape::disabled();
    let x = Var::constant(Tensor::from_vec(&[4], vec![-60.0f32, 60.0, 0.0, f32::NAN]));
    for kind in [Gelu::Tanh, Gelu::Exact] {
        let y = gelu(&tape, &x, kind).unwrap().value().to_f32_vec();
        assert_eq!(y[..3], [0.0, 60.0, 0.0]);
        assert!(y[3].is_nan());
    }
    let ids = Var::constant(Tensor::from_vec(&[1], vec![1u32]));
    let error = gelu(&tape, &ids, Gelu::Tanh).unwrap_err().to_string();
    assert_eq!(error, "gelu: expected f32, bf16 or f16, got dtype u32");
}
