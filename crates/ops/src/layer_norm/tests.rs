use super::layer_norm;
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise, noise_in};

const EPS: f32 = 1e-5;

#[derive(Default)]
struct Oracle {
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    db: Vec<f64>,
}

fn oracle(x: &[f64], (w, b): (&[f64], &[f64]), dy: &[f64]) -> Oracle {
    let c = w.len();
    let mean = |v: &dyn Fn(usize) -> f64| (0..c).map(v).sum::<f64>() / c as f64;
    let mut it = Oracle { dw: vec![0.0; c], db: vec![0.0; c], ..Oracle::default() };
    for (x, dy) in x.chunks(c).zip(dy.chunks(c)) {
        let m = mean(&|i| x[i]);
        let r = 1.0 / (mean(&|i| (x[i] - m).powi(2)) + f64::from(EPS)).sqrt();
        let h: Vec<f64> = x.iter().map(|v| (v - m) * r).collect();
        let (level, along) = (mean(&|i| dy[i] * w[i]), mean(&|i| dy[i] * w[i] * h[i]));
        for i in 0..c {
            it.y.push(h[i] * w[i] + b[i]);
            it.dx.push(r * (dy[i] * w[i] - level - h[i] * along));
            it.dw[i] += dy[i] * h[i];
            it.db[i] += dy[i];
        }
    }
    it
}

#[test]
fn values_and_gradients_agree_with_f64_in_every_dtype() {
    for dtype in FLOATS {
        for shape in [[3, 5], [33, 64], [130, 67], [2, 577]] {
            let x = Param::new("x", noise(&shape, dtype, 1));
            let w = Param::new("w", noise(&[shape[1]], DType::F32, 2));
            let b = Param::new("b", noise(&[shape[1]], DType::F32, 4));
            let dy = noise(&shape, dtype, 3);
            let tape = Tape::recording();
            let y = layer_norm(&tape, &tape.param(&x), &tape.param(&w), &tape.param(&b), EPS).unwrap();
            assert_eq!((y.value().shape(), y.value().dtype()), (&shape[..], dtype));
            let affine = (rounded(&w.value(), DType::F32), rounded(&b.value(), DType::F32));
            let expected = oracle(&rounded(&x.value(), dtype), (&affine.0, &affine.1), &rounded(&dy, dtype));
            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            let one = tolerance(dtype, shape[1]);
            assert_close("y", &y.value().to_f32_vec(), &expected.y, one);
            assert_close("dx", &grads.get(&x).unwrap().to_f32_vec(), &expected.dx, one);
            let sum = tolerance(DType::F32, shape[0] + shape[1]);
            assert_close("dw", grads.get(&w).unwrap().data(), &expected.dw, sum);
            assert_close("db", grads.get(&b).unwrap().data(), &expected.db, sum);
        }
    }
}

#[test]
fn gradients_agree_with_differences_whatever_is_frozen() {
    let x = Param::new("x", noise(&[4, 7], DType::F32, 1));
    let w = Param::new("w", noise(&[7], DType::F32, 2));
    let b = Param::new("b", noise(&[7], DType::F32, 3));
    let frozen = Var::constant(noise(&[7], DType::F32, 2));
    let all = [x.clone(), w.clone(), b.clone()];
    gradcheck(&all, |t, p| layer_norm(t, &t.param(&p[0]), &t.param(&p[1]), &t.param(&p[2]), EPS));
    gradcheck(&[x.clone(), w], |t, p| layer_norm(t, &t.param(&p[0]), &t.param(&p[1]), &frozen, EPS));
    gradcheck(&[x.clone(), b], |t, p| layer_norm(t, &t.param(&p[0]), &frozen, &t.param(&p[1]), EPS));
    gradcheck(&[x], |t, p| layer_norm(t, &t.param(&p[0]), &frozen, &frozen, EPS));
}

#[test]
fn a_large_mean_does_not_swallow_the_variance() {
    let x = noise_in(&[3, 64], DType::F32, 1, 1000.0, 1001.0);
    let ones = Var::constant(Tensor::from_vec(&[64], vec![1.0f32; 64]));
    let zeros = Var::constant(Tensor::zeros(&[64], DType::F32));
    let y = layer_norm(&Tape::disabled(), &Var::constant(x.clone()), &ones, &zeros, EPS).unwrap();
    let expected = oracle(&rounded(&x, DType::F32), (&[1.0; 64], &[0.0; 64]), &[0.0; 192]);
    // The mean is known to 2^-14 (half a unit of 1000, and the sum's), a deviation is 0.29.
    assert_close("y", &y.value().to_f32_vec(), &expected.y, 4.0 * 2f64.powi(-14));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = || {
        let x = Param::new("x", noise(&[301, 65], DType::Bf16, 1));
        let w = Param::new("w", noise(&[65], DType::F32, 2));
        let b = Param::new("b", noise(&[65], DType::F32, 2));
        let tape = Tape::recording();
        let y = layer_norm(&tape, &tape.param(&x), &tape.param(&w), &tape.param(&b), EPS).unwrap();
        let loss = with_gradient(&tape, &y, &noise(&[301, 65], DType::Bf16, 3));
        let grads = tape.backward(loss).unwrap();
        let mut all = vec![y.value().to_f32_vec()];
        all.extend([x, w, b].iter().map(|p| grads.get(p).unwrap().to_f32_vec()));
        all
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}

#[test]
fn a_bias_of_another_length_is_refused() {
    let x = Var::constant(noise(&[2, 6], DType::F32, 1));
    let of = |n: usize| Var::constant(Tensor::from_vec(&[n], vec![1.0f32; n]));
    let error = layer_norm(&Tape::disabled(), &x, &of(6), &of(5), EPS).unwrap_err().to_string();
    assert_eq!(error, "layer_norm: expected a weight of shape (6), one a channel, got shape [5]");
}
