use super::{dora_scale, row_norms};
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise, noise_in};

#[test]
fn values_and_gradients_agree_with_f64_in_every_dtype() {
    for dtype in FLOATS {
        for (rows, n) in [(1, 1), (3, 5), (70, 300)] {
            let u = Param::new("u", noise(&[rows, n], dtype, 1));
            let m = Param::new("m", noise_in(&[n], DType::F32, 2, 0.5, 2.0));
            let bias = Param::new("bias", noise(&[n], DType::F32, 3));
            let norm = noise_in(&[n], DType::F32, 4, 0.5, 2.0);
            let dy = noise(&[rows, n], dtype, 5);
            let tape = Tape::recording();
            let y = dora_scale(&tape, &tape.param(&u), &tape.param(&m), &norm, Some(&tape.param(&bias))).unwrap();
            let wide = |it: Vec<f32>| it.into_iter().map(f64::from).collect::<Vec<f64>>();
            let (uv, mv, bv) =
                (wide(u.value().to_f32_vec()), wide(m.value().to_f32_vec()), wide(bias.value().to_f32_vec()));
            let (norm, dyv) = (wide(norm.to_f32_vec()), wide(dy.to_f32_vec()));
            let expected: Vec<f64> =
                uv.iter().enumerate().map(|(i, u)| u * mv[i % n] / norm[i % n] + bv[i % n]).collect();
            let tolerance = tolerance(dtype, 4);
            assert_close("y", &y.value().to_f32_vec(), &expected, 4.0 * tolerance);

            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            let du: Vec<f64> = dyv.iter().enumerate().map(|(i, dy)| dy * mv[i % n] / norm[i % n]).collect();
            assert_close("du", &grads.get(&u).unwrap().to_f32_vec(), &du, 4.0 * tolerance);
            let sum = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
                (0..n).map(|j| (0..rows).map(|i| f(i * n + j)).sum()).collect()
            };
            let dm = sum(&|i| dyv[i] * uv[i] / norm[i % n]);
            assert_close("dm", &grads.get(&m).unwrap().to_f32_vec(), &dm, 1e-5 * rows as f64);
            assert_close("db", &grads.get(&bias).unwrap().to_f32_vec(), &sum(&|i| dyv[i]), 1e-5 * rows as f64);
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let params = [noise(&[3, 4], DType::F32, 1), noise(&[4], DType::F32, 2), noise(&[4], DType::F32, 3)];
    let params = params.map(|it| Param::new("p", it));
    let norm = Tensor::from_vec(&[4], vec![0.5f32, 1.0, 1.5, 2.0]);
    gradcheck(&params, |tape, p| {
        dora_scale(tape, &tape.param(&p[0]), &tape.param(&p[1]), &norm, Some(&tape.param(&p[2])))
    });
}

#[test]
fn norms_are_those_of_the_updated_rows() {
    let w = FourBit::random(5, 64, 7);
    let (a, b) = (noise(&[3, 64], DType::F32, 8), noise(&[5, 3], DType::F32, 9));
    let (wv, av, bv) = (w.dense().to_f32_vec(), a.to_f32_vec(), b.to_f32_vec());
    let value = |i: usize, j: usize| {
        let update: f64 = (0..3).map(|r| f64::from(bv[i * 3 + r]) * f64::from(av[r * 64 + j])).sum();
        f64::from(wv[i * 64 + j]) + 0.75 * update
    };
    let expected: Vec<f64> = (0..5).map(|i| (0..64).map(|j| value(i, j).powi(2)).sum::<f64>().sqrt()).collect();
    assert_close("updated", row_norms(&w, Some((&a, &b, 0.75))).unwrap().data(), &expected, 1e-5);
    let plain: Vec<f64> =
        wv.chunks(64).map(|row| row.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt()).collect();
    assert_close("plain", row_norms(&w, None).unwrap().data(), &plain, 1e-6);
}

#[test]
fn a_magnitude_of_another_size_is_refused() {
    let (u, m) = (Param::new("u", noise(&[2, 4], DType::F32, 1)), Param::new("m", noise(&[3], DType::F32, 2)));
    let tape = Tape::recording();
    assert!(dora_scale(&tape, &tape.param(&u), &tape.param(&m), &noise(&[4], DType::F32, 3), None).is_err());
    let (m, norm) = (Param::new("m", noise(&[4], DType::F32, 2)), noise(&[3], DType::F32, 3));
    assert!(dora_scale(&tape, &tape.param(&u), &tape.param(&m), &norm, None).is_err());
}
