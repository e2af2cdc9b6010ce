use super::{Dropout, apply, apply_in_place, dropout};
use crate::frozen_linear::test_support::{FLOATS, on_threads};
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor, philox};
use halfbyte_testkit::{gradcheck, noise};

const D: Dropout = Dropout { p: 0.3, seed: 5, site: 1 << 40 };

fn mask(len: usize, d: Dropout) -> Vec<f32> {
    apply(&Tensor::from_vec(&[len], vec![1.0f32; len]), d).unwrap().to_f32_vec()
}

#[test]
fn an_element_depends_on_seed_site_and_index_alone() {
    let long = mask(100_003, D);
    for (i, v) in long.iter().enumerate() {
        let bits = philox::quad(D.seed, D.site, (i / 4) as u64)[i % 4];
        assert_eq!(*v, if philox::unit(bits) >= D.p { 1.0 / (1.0 - D.p) } else { 0.0 }, "element {i}");
    }
    assert_eq!(mask(777, D), long[..777]);
    assert_eq!(on_threads(1, || mask(100_003, D)), on_threads(3, || mask(100_003, D)));
    let mut in_place = Tensor::from_vec(&[100_003], vec![1.0f32; 100_003]);
    apply_in_place(&mut in_place, D).unwrap();
    assert_eq!(in_place.to_f32_vec(), long);
    assert_ne!(mask(777, Dropout { seed: 6, ..D }), long[..777]);
    assert_ne!(mask(777, Dropout { site: 1, ..D }), long[..777]);
}

#[test]
fn the_asked_share_is_dropped() {
    for p in [0.05, 0.5, 0.95] {
        let n = 40_000;
        let kept = mask(n, Dropout { p, ..D }).iter().filter(|v| **v != 0.0).count() as f64;
        let (mean, variance) = (n as f64 * f64::from(1.0 - p), n as f64 * f64::from(p * (1.0 - p)));
        assert!((kept - mean).abs() < 5.0 * variance.sqrt(), "p = {p}: {kept} of {n} kept");
    }
}

#[test]
fn kept_elements_are_scaled_and_rounded_once() {
    for dtype in FLOATS {
        let x = noise(&[13, 31], dtype, 1);
        let y = dropout(&Tape::disabled(), &Var::constant(x.clone()), D).unwrap();
        assert_eq!((y.value().dtype(), y.value().shape()), (dtype, x.shape()));
        let products = x.to_f32_vec().iter().zip(mask(13 * 31, D)).map(|(x, m)| x * m).collect();
        let expected = Tensor::from_vec(x.shape(), products).to_dtype(dtype);
        assert_eq!(y.value().to_f32_vec(), expected.to_f32_vec());
    }
}

#[test]
fn the_gradient_passes_the_same_mask() {
    gradcheck(&[Param::new("x", noise(&[5, 7], DType::F32, 1))], |tape, p| dropout(tape, &tape.param(&p[0]), D));
}

/// A gradient that somebody else holds too must not be masked in place.
#[test]
fn a_shared_gradient_is_left_alone() {
    let x = Param::new("x", noise(&[9], DType::F32, 1));
    let dy = noise(&[9], DType::F32, 2);
    let before = dy.to_f32_vec();
    let tape = Tape::recording();
    let y = dropout(&tape, &tape.param(&x), D).unwrap();
    let loss = crate::frozen_linear::test_support::with_gradient(&tape, &y, &dy);
    let grads = tape.backward(loss).unwrap();
    let expected: Vec<f32> = before.iter().zip(mask(9, D)).map(|(d, m)| d * m).collect();
    assert_eq!((dy.to_f32_vec(), grads.get(&x).unwrap().to_f32_vec()), (before, expected));
}

#[test]
fn off_records_nothing_and_shares_the_input() {
    let x = Param::new("x", noise(&[9], DType::F32, 1));
    let tape = Tape::recording();
    let y = dropout(&tape, &tape.param(&x), Dropout::default()).unwrap();
    assert_eq!(tape.names(), ["param"]);
    assert_eq!(y.value().to_f32_vec(), x.value().to_f32_vec());
}

#[test]
fn probabilities_out_of_range_are_refused() {
    let x = Var::constant(noise(&[9], DType::F32, 1));
    for (p, shown) in [(1.0, "1"), (-0.1, "-0.1"), (f32::NAN, "NaN")] {
        let message = dropout(&Tape::disabled(), &x, Dropout { p, ..D }).unwrap_err().to_string();
        assert_eq!(message, format!("dropout: a dropout probability lies in [0, 1), got {shown}"));
    }
    let ids = Var::constant(Tensor::from_vec(&[1], vec![1u32]));
    assert!(dropout(&Tape::disabled(), &ids, D).is_err());
}
