//! Folding adapters into matrices and taking them out again.

mod support;

use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_lora::{Base, Context, Linear, LoraLayer, Modules, Role, Weight};
use halfbyte_nf4::{QuantType, quantize4};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, noise, noise_in};
use std::convert::Infallible;

type Freeze = fn(Tensor) -> Base;
const DIMS: [usize; 2] = [24, 64];

/// A matrix that is quantised to 4 bits (and kept decoded, which changes no value).
fn nf4(weight: Tensor) -> Base {
    let mut decoded = weight.to_f32_vec();
    quantize4(&decoded.clone(), QuantType::Nf4, 64, true).unwrap().dequantize(&mut decoded);
    support::dense(Tensor::from_vec(weight.shape(), decoded))
}

fn layer(path: &str, freeze: Freeze) -> Linear {
    let base = freeze(noise(&DIMS, DType::F32, 1));
    let mut layer =
        Linear::new(path, base, Some(Weight::frozen(format!("{path}.bias"), Role::Bias, noise(&[24], DType::F32, 2))));
    for (name, seed) in [("one", 3), ("two", 5)] {
        let a = Param::new("a", noise_in(&[4, 64], DType::F32, seed, -0.3, 0.3));
        let b = Param::new("b", noise_in(&[24, 4], DType::F32, seed + 1, -0.3, 0.3));
        layer.add_lora(name, LoraLayer { a, b, scaling: 1.5, dropout: 0.0, site: 0, magnitude: None });
    }
    layer.bias_mut().unwrap().add_copy("one", Some(noise(&[24], DType::F32, 7)));
    layer.set_active(Some("one"));
    layer
}

fn output(layer: &Linear) -> Vec<f32> {
    let x = Var::constant(noise(&[5, 64], DType::F32, 9));
    layer.forward(&Tape::disabled(), &x, &Context::default()).unwrap().into_value().to_f32_vec()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|it| f64::from(*it)).collect()
}

fn fold(modules: &mut Modules<'_>, freeze: Freeze) -> usize {
    let Ok(merged) = modules.merge(|_, weight| Ok::<_, Infallible>(freeze(weight)));
    merged
}

#[test]
fn a_merged_layer_gives_what_base_and_adapter_give_bias_included() {
    let mut it = layer("q", support::dense);
    let before = output(&it);
    let mut modules = Modules { linears: vec![&mut it], ..Modules::default() };
    assert_eq!(fold(&mut modules, support::dense), 1);
    assert!(it.active_lora().is_none(), "the update is part of the matrix now");
    // 64 products of size one, each rounded by 2^-24 relatively.
    assert_close("merged", &output(&it), &wide(&before), 2e-5);
    let mut modules = Modules { linears: vec![&mut it], ..Modules::default() };
    assert_eq!(fold(&mut modules, support::dense), 0, "twice is once");
}

#[test]
fn a_four_bit_matrix_is_quantised_again() {
    let mut it = layer("q", nf4);
    let sum = it.dense();
    let Ok(_) = it.merge(|_, weight| Ok::<_, Infallible>(nf4(weight)));
    let expected = Linear::new("sum", nf4(sum), None).dense();
    assert_eq!(it.dense().to_f32_vec(), expected.to_f32_vec());
}

#[test]
fn unmerging_is_exact_and_brings_the_adapter_back() {
    for freeze in [support::dense as Freeze, nf4] {
        let mut it = layer("q", freeze);
        let before = output(&it);
        let mut modules = Modules { linears: vec![&mut it], ..Modules::default() };
        fold(&mut modules, freeze);
        modules.unmerge();
        assert_eq!(output(&it), before);
    }
}

#[test]
fn choosing_another_adapter_takes_the_merged_one_out() {
    let mut it = layer("q", nf4);
    it.set_active(Some("two"));
    let two = output(&it);
    it.set_active(None);
    let none = output(&it);
    it.set_active(Some("one"));
    let Ok(_) = it.merge(|_, weight| Ok::<_, Infallible>(nf4(weight)));
    it.set_active(Some("two"));
    assert_eq!(output(&it), two);
    it.set_active(None);
    assert_eq!(output(&it), none);
}

#[test]
fn a_merge_that_fails_changes_nothing() {
    let (mut first, mut second) = (layer("first", nf4), layer("second", nf4));
    let before = output(&first);
    let mut modules = Modules { linears: vec![&mut first, &mut second], ..Modules::default() };
    let merged = modules.merge(|path, weight| match path {
        "second" => Err("no room".to_owned()),
        _ => Ok(nf4(weight)),
    });
    assert_eq!(merged, Err("no room".to_owned()));
    assert_eq!(output(&first), before);
    assert!(first.active_lora().is_some());
}

#[test]
fn a_new_full_copy_starts_as_the_base_whatever_is_active() {
    let mut it = layer("q", support::dense);
    let copy = it.add_full("three", None);
    assert_eq!(copy.value().to_f32_vec(), noise(&DIMS, DType::F32, 1).to_f32_vec());
    let bias = it.bias_mut().unwrap().add_copy("three", None);
    assert_eq!(bias.value().to_f32_vec(), noise(&[24], DType::F32, 2).to_f32_vec());
}
