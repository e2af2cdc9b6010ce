//! Tiny random models of both architectures against transformers: logits, loss and a gradient, all in f32.
//!
//! The fixtures hold weights (bf16, exact in f32), inputs with padding and ignored labels, and what transformers computed.

use halfbyte_autograd::{Param, Tape};
use halfbyte_lora::{Base, Context, Linear, Role, Weight};
use halfbyte_models::{Attend, Model, ModelConfig, Pass, Weights, build};
use halfbyte_ops::{
    IGNORE, Ids, Layout, Targets,
    cross_entropy::{cross_entropy, logits},
};
use halfbyte_tensor::{DType, Tensor, bf16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::Path;

struct Fixture {
    bytes: &'static [u8],
}

impl Fixture {
    fn tensor(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let data: Vec<f32> = match view.dtype() {
            Dtype::BF16 => view.data().chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F32 => view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            other => panic!("{name}: {other:?}"),
        };
        Tensor::from_vec(view.shape(), data)
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(self.bytes).unwrap();
        file.tensor(name).unwrap().data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn config(&self) -> ModelConfig {
        let (_, header) = SafeTensors::read_metadata(self.bytes).unwrap();
        let cases: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
        ModelConfig::parse(Path::new("config.json"), &cases[0]["config"].to_string()).unwrap()
    }

    fn model(&self) -> Box<dyn Model> {
        build(&self.config(), &mut Provider(self)).unwrap()
    }

    /// Padding is on the right in the fixtures, so a mask is a length.
    fn lengths(&self) -> Vec<usize> {
        let rows = self.integers("in.mask");
        rows.chunks(16).map(|row| row.iter().filter(|it| **it == 1).count()).collect()
    }

    fn ids(&self) -> Vec<u32> {
        self.integers("in.ids").into_iter().map(|it| it as u32).collect()
    }

    /// The rows of 16 one after the other, without their padding.
    fn flat(&self, padded: &[u32]) -> Vec<u32> {
        padded.chunks(16).zip(self.lengths()).flat_map(|(row, length)| row[..length].to_vec()).collect()
    }

    /// Labels shifted by one: position t predicts the label of t + 1.
    fn targets(&self) -> Vec<u32> {
        let shift = |row: &[i64]| {
            row[1..].iter().chain([&-100]).map(|it| u32::try_from(*it).unwrap_or(IGNORE)).collect::<Vec<_>>()
        };
        self.integers("in.labels").chunks(16).flat_map(shift).collect()
    }
}

/// All weights train, so that gradients can be compared.
struct Provider<'a>(&'a Fixture);

impl Weights for Provider<'_> {
    fn linear(&mut self, path: &str, dims: (usize, usize), bias: bool) -> halfbyte_models::Result<Linear> {
        let name = format!("{path}.weight");
        let tensor = self.0.tensor(&name);
        assert_eq!(tensor.shape(), [dims.0, dims.1], "{name}");
        let bias = if bias { Some(self.weight(&format!("{path}.bias"), &[dims.0], Role::Bias)?) } else { None };
        Ok(Linear::new(path, Base::Trainable(Param::new(name, tensor)), bias))
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> halfbyte_models::Result<Weight> {
        let tensor = self.0.tensor(name);
        assert_eq!(tensor.shape(), shape, "{name}");
        Ok(Weight::trainable(Param::new(name, tensor), role))
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> halfbyte_models::Result<Linear> {
        self.linear(path, dims, false)
    }
}

const LLAMA: Fixture = Fixture { bytes: include_bytes!("fixtures/tiny_llama.safetensors") };
const GPT_NEO: Fixture = Fixture { bytes: include_bytes!("fixtures/tiny_gpt_neo.safetensors") };

fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |m, it| m.max(it.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * largest.max(1e-6), "{what}[{i}]: {g}, transformers has {e}");
    }
}

fn check(fixture: &Fixture, gradient_of: &str) {
    let (model, lengths) = (fixture.model(), fixture.lengths());
    let (ids, layout) = (Ids::new(fixture.flat(&fixture.ids())), Layout::new(&lengths).unwrap());
    for checkpointing in [false, true] {
        let (ctx, attend) = (Context::default(), Attend::Segments);
        let tape = Tape::recording();
        let mut pass = Pass { attend, checkpointing, ..Pass::new(&ids, &layout, &ctx, DType::F32) };
        let hidden = model.forward(&tape, &mut pass).unwrap();
        let scores = logits(hidden.value(), model.head(&Tape::disabled(), &ctx).as_head()).unwrap();
        let (got, expected) = (scores.to_f32_vec(), fixture.tensor("out.logits").to_f32_vec());
        let vocab = model.config().vocab_size;
        for ((row, length), segment) in lengths.iter().enumerate().zip(layout.segments()) {
            let span = row * 16 * vocab..(row * 16 + length) * vocab;
            close("logits", &got[segment.first * vocab..][..length * vocab], &expected[span], 1e-5);
        }
        let targets = Targets::new(fixture.flat(&fixture.targets()));
        let counted = targets.rows().len();
        let loss = cross_entropy(&tape, &hidden, model.head(&tape, &ctx).as_head(), &targets, counted as f32).unwrap();
        close("loss", loss.value().data(), fixture.tensor("out.loss").data(), 1e-6);
        let param =
            model.parts().0.iter().flat_map(|it| it.trained()).find(|it| it.param.name() == gradient_of).unwrap().param;
        drop(hidden);
        let grads = tape.backward(loss).unwrap();
        let expected = fixture.tensor(&format!("grad.{gradient_of}"));
        close(gradient_of, grads.get(&param).unwrap().data(), expected.data(), 1e-5);
    }
}

#[test]
fn llama_computes_what_transformers_computes() {
    check(&LLAMA, "model.layers.0.self_attn.q_proj.weight");
}

#[test]
fn gpt_neo_computes_what_transformers_computes() {
    check(&GPT_NEO, "transformer.h.0.attn.attention.q_proj.weight");
}
