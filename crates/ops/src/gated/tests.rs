use super::{Gate, gated};
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise, noise_in};

/// `v(x)` and its derivative.
fn argument(x: f64, f: Gate) -> (f64, f64) {
    let slope = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    match f {
        Gate::Silu => (x, 1.0),
        Gate::Clamped { alpha, .. } => (f64::from(alpha) * x, f64::from(alpha)),
        Gate::GeluTanh => (slope * (x + 0.044715 * x.powi(3)), slope * (1.0 + 3.0 * 0.044715 * x * x)),
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Two roundings of values below 2 * 8, relative to `1 + |y|`.
fn roundings(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2.0 * 2f64.powi(-8),
        DType::F16 => 2.0 * 2f64.powi(-11),
        _ => 8.0 * 2f64.powi(-24),
    }
}

#[test]
fn values_and_gradients_agree_with_f64_in_every_dtype() {
    for (dtype, f) in FLOATS.into_iter().flat_map(|it| [(it, Gate::Silu), (it, Gate::GeluTanh)]) {
        for shape in [&[1, 1][..], &[3, 5], &[7, 33], &[67, 513]] {
            let gate = Param::new("gate", noise_in(shape, dtype, 1, -8.0, 8.0));
            let up = Param::new("up", noise(shape, dtype, 2));
            let dy = noise(shape, dtype, 3);
            let tape = Tape::recording();
            let y = gated(&tape, &tape.param(&gate), &tape.param(&up), f).unwrap();
            assert_eq!((y.value().shape(), y.value().dtype()), (shape, dtype));
            let (g, u, d) = (rounded(&gate.value(), dtype), rounded(&up.value(), dtype), rounded(&dy, dtype));
            let at =
                |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> { (0..g.len()).map(|i| f(g[i], u[i], d[i])).collect() };
            let tolerance = roundings(dtype) + if f == Gate::GeluTanh { 40.0 * 2f64.powi(-24) } else { 0.0 };
            let s = |g: f64| sigmoid(argument(g, f).0);
            assert_close("y", &y.value().to_f32_vec(), &at(&|g, u, _| g * s(g) * u), tolerance);

            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            let dg = at(&|g, u, d| d * u * s(g) * (1.0 + g * (1.0 - s(g)) * argument(g, f).1));
            assert_close("dgate", &grads.get(&gate).unwrap().to_f32_vec(), &dg, tolerance);
            let du = at(&|g, _, d| d * g * s(g));
            assert_close("dup", &grads.get(&up).unwrap().to_f32_vec(), &du, tolerance);
        }
    }
}

#[test]
fn gpt_oss_has_limits() {
    let (f, limit) = (Gate::Clamped { alpha: 1.702, limit: 1.5 }, 1.5);
    for dtype in FLOATS {
        let (gate, up) = (noise_in(&[5, 77], dtype, 1, -4.0, 4.0), noise_in(&[5, 77], dtype, 2, -4.0, 4.0));
        let params = [Param::new("gate", gate.clone()), Param::new("up", up.clone())];
        let (tape, dy) = (Tape::recording(), noise(&[5, 77], dtype, 3));
        let y = gated(&tape, &tape.param(&params[0]), &tape.param(&params[1]), f).unwrap();
        let got = y.value().to_f32_vec();
        let loss = with_gradient(&tape, &y, &dy);
        let grads = tape.backward(loss).unwrap();
        let [dg, du] = params.each_ref().map(|it| grads.get(it).unwrap().to_f32_vec());
        for (i, (g, u)) in gate.to_f32_vec().into_iter().zip(up.to_f32_vec()).enumerate() {
            let (top, middle) = (f64::from(g).min(limit), f64::from(u).clamp(-limit, limit));
            let (s, d) = (sigmoid(1.702 * top), f64::from(dy.to_f32_vec()[i]));
            let near = |what: &str, got: f32, expected: f64| {
                let allowed = 2.0 * (roundings(dtype) + 1e-6) * (1.0 + expected.abs());
                assert!((f64::from(got) - expected).abs() < allowed, "{what} at {g}, {u}: {got}, expected {expected}");
            };
            near("y", got[i], (middle + 1.0) * top * s);
            let slope = d * (middle + 1.0) * s * (1.0 + top * (1.0 - s) * 1.702);
            near("dgate", dg[i], if f64::from(g) > limit { 0.0 } else { slope });
            near("dup", du[i], if f64::from(u).abs() > limit { 0.0 } else { d * top * s });
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let gate = Param::new("gate", noise(&[4, 5], DType::F32, 1));
    let up = Param::new("up", noise(&[4, 5], DType::F32, 2));
    for f in [Gate::Silu, Gate::GeluTanh] {
        gradcheck(&[gate.clone(), up.clone()], |tape, p| gated(tape, &tape.param(&p[0]), &tape.param(&p[1]), f));
    }
}

#[test]
fn large_gates_saturate_and_unlike_operands_are_refused() {
    let tape = Tape::disabled();
    let gate = Var::constant(Tensor::from_vec(&[4], vec![-300.0f32, 300.0, 0.0, f32::NAN]));
    let up = Var::constant(Tensor::from_vec(&[4], vec![3.0f32; 4]));
    let y = gated(&tape, &gate, &up, Gate::Silu).unwrap().value().to_f32_vec();
    assert_eq!(y[..3], [0.0, 900.0, 0.0]);
    assert!(y[3].is_nan());
    let error = gated(&tape, &gate, &Var::constant(noise(&[5], DType::F32, 1)), Gate::Silu).unwrap_err().to_string();
    assert_eq!(error, "gated: expected shape [4] as in the first operand, got shape [5]");
}
