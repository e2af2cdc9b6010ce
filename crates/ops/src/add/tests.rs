use super::{add, add_scaled, scale};
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise};

#[test]
fn sums_and_gradients_are_exact_but_for_one_rounding() {
    for dtype in FLOATS {
        for shape in [&[1, 1][..], &[3, 5], &[2, 3, 7], &[130, 257]] {
            let a = Param::new("a", noise(shape, dtype, 1));
            let b = Param::new("b", noise(shape, dtype, 2));
            let dy = noise(shape, dtype, 3);
            for scale in [1.0f32, -0.375] {
                let tape = Tape::recording();
                let y = add_scaled(&tape, &tape.param(&a), &tape.param(&b), scale).unwrap();
                let (av, bv) = (a.value().to_f32_vec(), b.value().to_f32_vec());
                let expected: Vec<f32> = av.iter().zip(&bv).map(|(a, b)| a + scale * b).collect();
                let expected = Tensor::from_vec(shape, expected).to_dtype(dtype);
                assert_eq!((y.value().shape(), y.value().dtype()), (shape, dtype));
                assert_eq!(y.value().to_f32_vec(), expected.to_f32_vec());

                let loss = with_gradient(&tape, &y, &dy);
                let grads = tape.backward(loss).unwrap();
                assert_eq!(grads.get(&a).unwrap().to_f32_vec(), dy.to_f32_vec());
                let db: Vec<f32> = dy.to_f32_vec().iter().map(|v| scale * v).collect();
                let db = Tensor::from_vec(shape, db).to_dtype(dtype);
                assert_eq!(grads.get(&b).unwrap().to_f32_vec(), db.to_f32_vec());
            }
        }
    }
}

#[test]
fn multiples_and_their_gradients_are_rounded_once() {
    for dtype in FLOATS {
        let (x, dy) = (Param::new("x", noise(&[7, 130], dtype, 1)), noise(&[7, 130], dtype, 3));
        let tape = Tape::recording();
        let y = scale(&tape, &tape.param(&x), 3.3).unwrap();
        let times = |t: &Tensor| {
            let all: Vec<f32> = t.to_f32_vec().iter().map(|v| 3.3 * v).collect();
            Tensor::from_vec(t.shape(), all).to_dtype(dtype).to_f32_vec()
        };
        assert_eq!(y.value().to_f32_vec(), times(&x.value()));
        let loss = with_gradient(&tape, &y, &dy);
        assert_eq!(tape.backward(loss).unwrap().get(&x).unwrap().to_f32_vec(), times(&dy));
    }
}

#[test]
fn gradients_agree_with_differences() {
    let a = Param::new("a", noise(&[3, 4], DType::F32, 1));
    let b = Param::new("b", noise(&[3, 4], DType::F32, 2));
    gradcheck(&[a, b], |tape, p| add_scaled(tape, &tape.param(&p[0]), &tape.param(&p[1]), 0.5));
}

#[test]
fn an_operand_added_to_itself_gets_both_gradients() {
    let a = Param::new("a", noise(&[5], DType::F32, 1));
    let tape = Tape::recording();
    let x = tape.param(&a);
    let y = add(&tape, &x, &x).unwrap();
    let dy = noise(&[5], DType::F32, 2);
    let loss = with_gradient(&tape, &y, &dy);
    let grads = tape.backward(loss).unwrap();
    let expected: Vec<f64> = dy.to_f32_vec().iter().map(|v| 2.0 * f64::from(*v)).collect();
    assert_close("da", &grads.get(&a).unwrap().to_f32_vec(), &expected, 0.0);
}

#[test]
fn unlike_operands_are_refused() {
    let tape = Tape::disabled();
    let a = Var::constant(noise(&[2, 3], DType::F32, 1));
    let message = |b: Tensor| add(&tape, &a, &Var::constant(b)).unwrap_err().to_string();
    assert_eq!(
        message(noise(&[3, 2], DType::F32, 1)),
        "add: expected shape [2, 3] as in the first operand, got shape [3, 2]"
    );
    assert_eq!(message(noise(&[2, 3], DType::Bf16, 1)), "add: expected f32 as in the first operand, got bf16");
}
