//! One layer against what PEFT computed for it: `fixtures/lora.safetensors` holds a linear layer (`W`, `b`), an input
//! `x`, an adapter (`A`, `B`) of rank 4 and alpha 6, and for LoRA, rsLoRA and DoRA the output, the gradients of `sum(y)`
//! and the merged matrix, all in f32.

mod support;

use halfbyte_autograd::{Param, Tape};
use halfbyte_lora::{Adapter, Context, Dora, Linear, Lora, LoraConfig, Role, Selection, Update, Weight};
use halfbyte_tensor::Tensor;
use halfbyte_testkit::assert_close;
use safetensors::SafeTensors;
use std::sync::Arc;

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Fixture {
        Fixture(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lora.safetensors")).unwrap())
    }

    fn tensor(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Tensor::from_vec(view.shape(), values.collect())
    }

    fn expected(&self, name: &str) -> Vec<f64> {
        self.tensor(name).to_f32_vec().into_iter().map(f64::from).collect()
    }
}

/// Sums of at most 24 terms of size one: a few units of 2^-24 of each, far below this.
const TOLERANCE: f64 = 1e-5;

fn agrees(case: &str, use_rslora: bool) {
    let fixture = Fixture::open();
    let config = LoraConfig { rank: 4, lora_alpha: 6.0, use_rslora, ..LoraConfig::default() };
    let (rank, scaling) = Selection::new(&config, None).unwrap().rank_and_scaling("layer");
    let (a, b) = (Param::new("A", fixture.tensor("A")), Param::new("B", fixture.tensor("B")));
    assert_eq!(a.value().shape()[0], rank);
    let base = support::dense(fixture.tensor("W"));
    let layer = Linear::new("layer", base, Some(Weight::frozen("layer.bias", Role::Bias, fixture.tensor("b"))));
    let lora = Lora { a: a.clone(), b: b.clone(), scaling, dropout: 0.0, site: 0 };
    let magnitude = (case == "dora").then(|| Param::new("m", fixture.tensor("dora.magnitude")));
    let update: Box<dyn Update> = match &magnitude {
        Some(magnitude) => Box::new(Dora { lora, magnitude: magnitude.clone() }),
        None => Box::new(lora),
    };
    let adapter = Arc::new(Adapter::new("peft", config, vec![("layer".to_owned(), Role::Linear, update)]));

    let tape = Tape::recording();
    let x = tape.param(&Param::new("x", fixture.tensor("x")));
    let y = layer.forward(&tape, &x, &Context::new(Some(adapter.clone()))).unwrap();
    assert_close("y", &y.value().to_f32_vec(), &fixture.expected(&format!("{case}.y")), TOLERANCE);
    let ones = Tensor::from_vec(y.value().shape(), vec![1.0f32; y.value().len()]);
    let sum = tape.record("sum", [&y], Tensor::scalar(0.0), move |_, _| Ok([Some(ones)]));
    let grads = tape.backward(sum).unwrap();
    for (param, name) in [(&a, "gA"), (&b, "gB")] {
        let got = grads.get(param).unwrap().to_f32_vec();
        assert_close(name, &got, &fixture.expected(&format!("{case}.{name}")), TOLERANCE);
    }
    if let Some(magnitude) = &magnitude {
        let got = grads.get(magnitude).unwrap().to_f32_vec();
        assert_close("gmag", &got, &fixture.expected("dora.gmag"), TOLERANCE);
    }
    assert_close(
        "merged",
        &layer.dense(Some(&adapter)).unwrap().to_f32_vec(),
        &fixture.expected(&format!("{case}.merged")),
        TOLERANCE,
    );
}

#[test]
fn lora_is_pefts() {
    agrees("lora", false);
}

#[test]
fn rank_stabilised_lora_is_pefts() {
    agrees("rslora", true);
}

#[test]
fn dora_has_the_output_gradients_and_merge_of_peft() {
    agrees("dora", false);
}

#[test]
fn fresh_magnitudes_are_the_norms_of_the_base() {
    let fixture = Fixture::open();
    let layer = Linear::new("layer", support::dense(fixture.tensor("W")), None);
    let norms: Vec<f64> = fixture
        .expected("W")
        .chunks(fixture.tensor("W").shape()[1])
        .map(|row| row.iter().map(|it| it * it).sum::<f64>().sqrt())
        .collect();
    assert_close("norms", &layer.row_norms().unwrap(), &norms, TOLERANCE);
}
