use super::linear;
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise};

const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 1), (3, 5, 2), (17, 33, 9), (70, 129, 65), (5, 64, 300)];

#[test]
fn forward_and_gradients_agree_with_f64_in_every_dtype() {
    for dtype in FLOATS {
        for (m, k, n) in SHAPES {
            let x = Param::new("x", noise(&[m, k], dtype, 1));
            let w = Param::new("w", noise(&[n, k], DType::F32, 2));
            let b = Param::new("b", noise(&[n], DType::F32, 3));
            let dy = noise(&[m, n], dtype, 4);
            let tape = Tape::recording();
            let y = linear(&tape, &tape.param(&x), &tape.param(&w), Some(&tape.param(&b))).unwrap();
            assert_eq!((y.value().dtype(), y.value().shape()), (dtype, &[m, n][..]));

            let (xs, ws) = (as_operand(&x.value(), dtype), as_operand(&w.value(), dtype));
            let mut expected = product(&xs, &transposed(&ws, n, k), (m, k, n));
            let bias = rounded(&b.value(), DType::F32);
            expected.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % n]);
            assert_close("y", &y.value().to_f32_vec(), &expected, tolerance(dtype, k));

            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            let ds = as_operand(&dy, dtype);
            let dx = grads.get(&x).unwrap();
            assert_eq!(dx.dtype(), dtype);
            assert_close("dx", &dx.to_f32_vec(), &product(&ds, &ws, (m, n, k)), tolerance(dtype, n));
            // Gradients of what trains stay f32, whatever the activations are.
            let (dw, db) = (grads.get(&w).unwrap(), grads.get(&b).unwrap());
            let expected = product(&transposed(&ds, m, n), &xs, (n, m, k));
            assert_close("dw", dw.data::<f32>(), &expected, tolerance(DType::F32, m));
            let expected = product(&vec![1.0; m], &rounded(&dy, dtype), (1, m, n));
            assert_close("db", db.data::<f32>(), &expected, tolerance(DType::F32, m));
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let x = Param::new("x", noise(&[4, 7], DType::F32, 1));
    let w = Param::new("w", noise(&[5, 7], DType::F32, 2));
    let b = Param::new("b", noise(&[5], DType::F32, 3));
    gradcheck(&[x, w, b], |tape, p| linear(tape, &tape.param(&p[0]), &tape.param(&p[1]), Some(&tape.param(&p[2]))));
}

#[test]
fn leading_extents_fold_and_the_gradient_keeps_them() {
    let x = Param::new("x", noise(&[2, 3, 4], DType::F32, 1));
    let w = Var::constant(noise(&[5, 4], DType::F32, 2));
    let tape = Tape::recording();
    let y = linear(&tape, &tape.param(&x), &w, None).unwrap();
    assert_eq!(y.value().shape(), [6, 5]);
    let loss = with_gradient(&tape, &y, &noise(&[6, 5], DType::F32, 3));
    assert_eq!(tape.backward(loss).unwrap().get(&x).unwrap().shape(), [2, 3, 4]);
}

#[test]
fn constants_record_nothing() {
    let tape = Tape::recording();
    let (x, w) = (noise(&[2, 3], DType::F32, 1), noise(&[4, 3], DType::F32, 2));
    let y = linear(&tape, &Var::constant(x), &Var::constant(w), None).unwrap();
    assert!(!y.requires_grad() && tape.names().is_empty());
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let tape = Tape::disabled();
    let x = Var::constant(noise(&[2, 3], DType::F32, 1));
    let run = |x: &Var, w: &[usize], b: &[usize]| {
        let (w, b) = (Var::constant(noise(w, DType::F32, 1)), Var::constant(noise(b, DType::F32, 1)));
        linear(&tape, x, &w, Some(&b)).unwrap_err().to_string()
    };
    assert_eq!(run(&x, &[4, 5], &[4]), "linear: expected activations of shape (rows, 5), got shape [2, 3]");
    assert_eq!(run(&x, &[4, 3], &[3]), "linear: expected a bias of shape (4), got shape [3]");
    assert_eq!(run(&x, &[4], &[4]), "linear: expected a weight of shape (out_features, in_features), got shape [4]");
    let ids = Var::constant(Tensor::from_vec(&[1, 3], vec![1u32, 2, 3]));
    assert_eq!(run(&ids, &[4, 3], &[4]), "linear: expected f32, bf16 or f16, got dtype u32");
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let run = || {
        let (x, w) =
            (Param::new("x", noise(&[150, 90], DType::Bf16, 1)), Param::new("w", noise(&[310, 90], DType::F32, 2)));
        let b = Param::new("b", noise(&[310], DType::F32, 3));
        let tape = Tape::recording();
        let y = linear(&tape, &tape.param(&x), &tape.param(&w), Some(&tape.param(&b))).unwrap();
        let loss = with_gradient(&tape, &y, &noise(&[150, 310], DType::Bf16, 4));
        let grads = tape.backward(loss).unwrap();
        [&x, &w, &b].map(|p| grads.get(p).unwrap().to_f32_vec())
    };
    assert_eq!(on_threads(1, run), on_threads(3, run));
}
