use super::{frozen_linear, test_support::*};
use crate::FrozenMatrix;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise};

#[test]
fn forward_and_gradient_of_a_four_bit_weight_agree_with_f64_in_every_dtype() {
    for dtype in FLOATS {
        for (m, k, n) in [(1, 3, 1), (6, 65, 31), (40, 130, 77)] {
            let w = FourBit::random(n, k, 5);
            let x = Param::new("x", noise(&[m, k], dtype, 1));
            let dy = noise(&[m, n], dtype, 4);
            let tape = Tape::recording();
            let bias = Param::new("bias", noise(&[n], DType::F32, 6));
            let y = frozen_linear(&tape, &tape.param(&x), &w, Some(&tape.param(&bias))).unwrap();
            assert_eq!(y.value().dtype(), dtype);
            let ws = as_operand(&w.dense(), dtype);
            let mut expected = product(&as_operand(&x.value(), dtype), &transposed(&ws, n, k), (m, k, n));
            let biases = bias.value().to_f32_vec();
            expected.iter_mut().zip(biases.iter().cycle()).for_each(|(y, b)| *y += f64::from(*b));
            assert_close("y", &y.value().to_f32_vec(), &expected, tolerance(dtype, k));
            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            let expected = product(&as_operand(&dy, dtype), &ws, (m, n, k));
            assert_close("dx", &grads.get(&x).unwrap().to_f32_vec(), &expected, tolerance(dtype, n));
            let mut expected = vec![0.0; n];
            for row in rounded(&dy, dtype).chunks(n) {
                expected.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
            }
            assert_close("dbias", &grads.get(&bias).unwrap().to_f32_vec(), &expected, tolerance(DType::F32, m));
        }
    }
}

#[test]
fn four_bits_and_their_decoded_values_give_the_same_bits() {
    let w = FourBit::random(33, 70, 5);
    let dense = Plain::new(w.dense());
    let run = |w: &dyn FrozenMatrix| {
        let x = Param::new("x", noise(&[9, 70], DType::Bf16, 1));
        let tape = Tape::recording();
        let y = frozen_linear(&tape, &tape.param(&x), w, None).unwrap();
        let loss = with_gradient(&tape, &y, &noise(&[9, 33], DType::Bf16, 2));
        let y = y.into_value().to_f32_vec();
        (y, tape.backward(loss).unwrap().get(&x).unwrap().to_f32_vec())
    };
    assert_eq!(run(&w), run(&dense));
}

#[test]
fn gradients_of_input_and_bias_agree_with_differences() {
    let w = Plain::leaked(noise(&[5, 7], DType::F32, 2));
    let params = [Param::new("x", noise(&[4, 7], DType::F32, 1)), Param::new("b", noise(&[5], DType::F32, 3))];
    gradcheck(&params, |tape, p| frozen_linear(tape, &tape.param(&p[0]), w, Some(&tape.param(&p[1]))));
}

#[test]
fn a_constant_input_costs_no_backward_product_and_records_nothing() {
    let w = Plain::new(noise(&[5, 7], DType::F32, 2));
    let x = Var::constant(noise(&[4, 7], DType::F32, 1));
    let tape = Tape::recording();
    frozen_linear(&tape, &x, &w, None).unwrap();
    assert!(tape.names().is_empty());

    let b = Param::new("b", noise(&[5], DType::F32, 3));
    let y = frozen_linear(&tape, &x, &w, Some(&tape.param(&b))).unwrap();
    let loss = with_gradient(&tape, &y, &noise(&[4, 5], DType::F32, 4));
    assert_eq!(tape.backward(loss).unwrap().len(), 1);
    assert_eq!(w.reads(), 2, "each forward reads the weight, the bias's gradient does not");
}

#[test]
fn a_format_may_compute_its_own_forward() {
    for dtype in FLOATS {
        let w = Sevens(Plain::new(noise(&[2, 3], DType::F32, 2)));
        let x = Param::new("x", noise(&[4, 3], dtype, 1));
        let bias = Var::constant(Tensor::from_vec(&[2], vec![0.5f32, -1.0]));
        let tape = Tape::recording();
        let y = frozen_linear(&tape, &tape.param(&x), &w, Some(&bias)).unwrap();
        assert_eq!((y.value().dtype(), y.value().to_f32_vec()), (dtype, [7.5f32, 6.0].repeat(4)));
        // The backward pass is the plain product.
        let dy = noise(&[4, 2], dtype, 3);
        let loss = with_gradient(&tape, &y, &dy);
        let expected = product(&as_operand(&dy, dtype), &as_operand(&w.0.weight, dtype), (4, 2, 3));
        let grads = tape.backward(loss).unwrap();
        assert_close("dx", &grads.get(&x).unwrap().to_f32_vec(), &expected, tolerance(dtype, 2));
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let w = Plain::new(noise(&[5, 7], DType::F32, 2));
    let tape = Tape::disabled();
    let x = Var::constant(noise(&[4, 6], DType::F32, 1));
    let message = frozen_linear(&tape, &x, &w, None).unwrap_err().to_string();
    assert_eq!(message, "frozen_linear: expected activations of shape (rows, 7), got shape [4, 6]");
}
