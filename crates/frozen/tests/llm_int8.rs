//! LLM.int8() against what bitsandbytes computed: `crates/nf4/tests/fixtures/int8.safetensors` holds f16 activations, weights in
//! 8 bits, codes and scales of both, and the outputs for thresholds 0 (no outliers) and 6.

use halfbyte_autograd::{Param, Tape};
use halfbyte_frozen::{FrozenMatrix, Int8Matrix};
use halfbyte_nf4::Rows8;
use halfbyte_ops::frozen_linear::frozen_linear;
use halfbyte_tensor::{DType, Tensor, f16};
use halfbyte_testkit::assert_close;
use safetensors::{Dtype, SafeTensors};

struct Case {
    bytes: Vec<u8>,
    name: &'static str,
}

impl Case {
    fn open(name: &'static str) -> Case {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../nf4/tests/fixtures/int8.safetensors");
        Case { bytes: std::fs::read(path).unwrap(), name }
    }

    fn tensor(&self, part: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(&format!("{}.{part}", self.name)).unwrap();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F16 => view.data().chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::I8 => view.data().iter().map(|b| f32::from(i8::from_le_bytes([*b]))).collect(),
            _ => view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        };
        Tensor::from_vec(view.shape(), values)
    }

    fn expected(&self, part: &str) -> Vec<f64> {
        self.tensor(part).to_f32_vec().into_iter().map(f64::from).collect()
    }

    fn weight(&self) -> Int8Matrix {
        let codes = self.tensor("CB");
        let (rows, cols) = (codes.shape()[0], codes.shape()[1]);
        let codes = codes.to_f32_vec().into_iter().map(|it| it as i8).collect();
        Int8Matrix::from_rows(Rows8::from_parts(rows, cols, codes, self.tensor("SCB").to_f32_vec()).unwrap())
    }
}

/// bitsandbytes rounds its output to f16 and its scale's constant to f32.
fn within_f16(case: &Case, got: &[f32]) {
    let bias = case.tensor("bias").to_f32_vec();
    let got: Vec<f32> = got.iter().enumerate().map(|(i, it)| it + bias[i % bias.len()]).collect();
    let largest = case.expected("out").iter().fold(0.0f64, |m, it| m.max(it.abs()));
    assert_close("y", &got, &case.expected("out"), largest * 2.0f64.powi(-10));
}

#[test]
fn the_forward_with_outliers_is_that_of_bitsandbytes() {
    let case = Case::open("llmint8_thr6");
    let x = case.tensor("A");
    assert!(x.to_f32_vec().iter().any(|it| it.abs() >= 6.0), "the case has outliers");
    let y = case.weight().forward(&x).unwrap().unwrap();
    within_f16(&case, &y.to_f32_vec());
    // The decoded product is something else, or this would prove nothing.
    let exact = exact(&case.weight(), &x);
    let largest = exact.iter().zip(y.to_f32_vec()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest > 1e-3, "{largest}");
}

/// `x Wᵀ` with the decoded weight.
fn exact(w: &Int8Matrix, x: &Tensor) -> Vec<f32> {
    let (n, k) = w.dims();
    let (source, x) = (w.source(), x.to_f32_vec());
    let mut row = vec![0.0; k];
    let mut y = vec![0.0; x.len() / k * n];
    for j in 0..n {
        source.read_f32(j, 0, &mut row);
        for (i, x) in x.chunks(k).enumerate() {
            y[i * n + j] = x.iter().zip(&row).map(|(a, b)| a * b).sum();
        }
    }
    y
}

#[test]
fn without_outliers_all_columns_are_integers() {
    // Threshold 0 means no outliers in bitsandbytes; here the same activations are scaled below the threshold, and the
    // result is linear in the scale.
    let case = Case::open("llmint8_thr0");
    let x = case.tensor("A");
    let scale = 0.25f32;
    let smaller = Tensor::from_vec(x.shape(), x.to_f32_vec().into_iter().map(|it| it * scale).collect::<Vec<f32>>());
    assert!(smaller.to_f32_vec().iter().all(|it| it.abs() < 6.0));
    let y = case.weight().forward(&smaller).unwrap().unwrap();
    within_f16(&case, &y.to_f32_vec().into_iter().map(|it| it / scale).collect::<Vec<_>>());
}

#[test]
fn the_gradient_is_that_of_the_decoded_weight() {
    let case = Case::open("llmint8_train_cpu");
    let (x, w) = (Param::new("x", case.tensor("A")), case.weight());
    let tape = Tape::recording();
    let y = frozen_linear(&tape, &tape.param(&x), &w, None).unwrap();
    let dy = case.tensor("grad_out");
    let end = tape.record("seed", [&y], Tensor::scalar(0.0), move |_, _| Ok([Some(dy)]));
    let gradient = tape.backward(end).unwrap();
    assert_close("dx", &gradient.get(&x).unwrap().to_f32_vec(), &case.expected("grad_A"), 1e-5);
}

#[test]
fn nan_and_infinity_in_the_input_reach_the_output() {
    let w = Int8Matrix::quantize(&halfbyte_testkit::noise(&[8, 16], DType::F32, 1)).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = vec![0.5; 32];
        x[3] = bad;
        let y = w.forward(&Tensor::from_vec(&[2, 16], x)).unwrap().unwrap().to_f32_vec();
        assert!(y[..8].iter().all(|it| !it.is_finite()), "{bad}");
        assert!(y[8..].iter().all(|it| it.is_finite()), "{bad}: the other row is whole");
    }
}

#[test]
fn one_row_has_the_bits_of_many() {
    let w = Int8Matrix::quantize(&halfbyte_testkit::noise(&[40, 64], DType::F32, 1)).unwrap();
    let x = halfbyte_testkit::noise_in(&[5, 64], DType::Bf16, 2, -4.0, 4.0);
    let all = w.forward(&x).unwrap().unwrap().to_f32_vec();
    let values = x.to_f32_vec();
    for (row, expected) in all.chunks(40).enumerate() {
        let one = Tensor::from_vec(&[1, 64], values[row * 64..][..64].to_vec());
        assert_eq!(w.forward(&one).unwrap().unwrap().to_f32_vec(), expected);
    }
}
