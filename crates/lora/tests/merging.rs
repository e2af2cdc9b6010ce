//! Folding adapters into matrices and taking them out again.

mod support;

use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_lora::{
    Adapter, Base, Context, Error, Full, Linear, Lora, LoraConfig, Merged, Modules, Role, Tie, Update, Weight, merge,
};
use halfbyte_nf4::{QuantType, quantize4};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, noise, noise_in};
use std::sync::Arc;

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
    Linear::new(path, base, Some(Weight::frozen(format!("{path}.bias"), Role::Bias, noise(&[24], DType::F32, 2))))
}

/// An update of the layers at `paths`, each with a bias of its own.
fn adapter(paths: &[&str], seed: u64) -> Arc<Adapter> {
    let mut updates: Vec<(String, Role, Box<dyn Update>)> = Vec::new();
    for path in paths {
        let a = Param::new("a", noise_in(&[4, 64], DType::F32, seed, -0.3, 0.3));
        let b = Param::new("b", noise_in(&[24, 4], DType::F32, seed + 1, -0.3, 0.3));
        updates.push(((*path).to_owned(), Role::Linear, Box::new(Lora { a, b, scaling: 1.5, dropout: 0.0, site: 0 })));
        let bias = Param::new(format!("{path}.bias"), noise(&[24], DType::F32, 7 + seed));
        updates.push((format!("{path}.bias"), Role::Bias, Box::new(Full::new(bias))));
    }
    Arc::new(Adapter::new("one", LoraConfig::default(), updates))
}

fn output(layer: &Linear, adapter: Option<&Arc<Adapter>>) -> Vec<f32> {
    let x = Var::constant(noise(&[5, 64], DType::F32, 9));
    layer.forward(&Tape::disabled(), &x, &Context::new(adapter.cloned())).unwrap().into_value().to_f32_vec()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|it| f64::from(*it)).collect()
}

fn fold(adapter: &Adapter, layer: &mut Linear, freeze: Freeze) -> Merged {
    let mut modules = Modules { linears: vec![layer], ..Modules::default() };
    merge(adapter, &mut modules, |_, weight| Ok::<_, Error>(freeze(weight))).unwrap()
}

#[test]
fn a_merged_layer_gives_what_base_and_adapter_give_bias_included() {
    let (mut it, one) = (layer("q", support::dense), adapter(&["q"], 3));
    let before = output(&it, Some(&one));
    assert_eq!(fold(&one, &mut it, support::dense).matrices(), 1);
    // 64 products of size one, each rounded by 2^-24 relatively.
    assert_close("merged", &output(&it, None), &wide(&before), 2e-5);
}

#[test]
fn a_four_bit_matrix_is_quantised_again() {
    let (mut it, one) = (layer("q", nf4), adapter(&["q"], 3));
    let sum = it.dense(Some(&one)).unwrap();
    let _merged = fold(&one, &mut it, nf4);
    let expected = Linear::new("sum", nf4(sum), None).dense(None).unwrap();
    assert_eq!(it.dense(None).unwrap().to_f32_vec(), expected.to_f32_vec());
}

#[test]
fn what_was_merged_can_be_taken_out_bit_for_bit() {
    for freeze in [support::dense as Freeze, nf4] {
        let (mut it, one, two) = (layer("q", freeze), adapter(&["q"], 3), adapter(&["q"], 5));
        let before = [None, Some(&one), Some(&two)].map(|adapter| output(&it, adapter));
        let merged = fold(&one, &mut it, freeze);
        assert_ne!(output(&it, None), before[0]);
        merged.undo(&mut Modules { linears: vec![&mut it], ..Modules::default() });
        assert_eq!([None, Some(&one), Some(&two)].map(|adapter| output(&it, adapter)), before);
    }
}

#[test]
fn norms_and_embeddings_are_merged_too() {
    let mut norm = Weight::frozen("norm.weight", Role::Norm, noise(&[8], DType::Bf16, 1));
    let before = norm.value();
    let copy = noise(&[8], DType::F32, 2);
    let update: Box<dyn Update> = Box::new(Full::new(Param::new("norm.weight", copy.clone())));
    let one = Adapter::new("one", LoraConfig::default(), vec![("norm.weight".to_owned(), Role::Norm, update)]);
    let mut modules = Modules { weights: vec![&mut norm], ..Modules::default() };
    let merged = merge(&one, &mut modules, |_, weight| Ok::<_, Error>(support::dense(weight))).unwrap();
    assert_eq!(modules.weights[0].value().to_f32_vec(), copy.to_f32_vec());
    merged.undo(&mut modules);
    assert_eq!((norm.value().dtype(), norm.value().to_f32_vec()), (DType::Bf16, before.to_f32_vec()));
}

#[test]
fn a_merge_that_fails_changes_nothing() {
    let (mut first, mut second) = (layer("first", nf4), layer("second", nf4));
    let one = adapter(&["first", "second"], 3);
    let before = output(&first, None);
    let mut modules = Modules { linears: vec![&mut first, &mut second], ..Modules::default() };
    let merged = merge(&one, &mut modules, |path, weight| match path {
        "second" => Err(Error::Config("no room".to_owned())),
        _ => Ok(nf4(weight)),
    });
    assert_eq!(merged.unwrap_err().to_string(), "no room");
    assert_eq!(output(&first, None), before);
}

#[test]
fn an_embedding_that_leaves_its_tied_head_alone_cannot_be_merged() {
    let mut table = Weight::frozen("embed.weight", Role::Embedding, noise(&[8, 4], DType::F32, 1));
    let update = halfbyte_lora::EmbeddingLora {
        a: Param::new("a", noise(&[8, 2], DType::F32, 2)),
        b: Param::new("b", noise(&[4, 2], DType::F32, 3)),
        scaling: 1.0,
    };
    let one = Adapter::new("one", LoraConfig::default(), vec![("embed".to_owned(), Role::Embedding, Box::new(update))]);
    let tied = Some(Tie { embedding: "embed".to_owned(), head: "lm_head".to_owned() });
    let mut modules = Modules { weights: vec![&mut table], tied, ..Modules::default() };
    let refused = merge(&one, &mut modules, |_, weight| Ok::<_, Error>(support::dense(weight))).unwrap_err();
    assert!(refused.to_string().contains("one matrix for both"), "{refused}");
}
