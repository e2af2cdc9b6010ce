//! Is `Objective` enough for preferences? A loss of two rows, the chosen and the rejected, from the log-probabilities of their
//! tokens with the adapter and without it (DPO), written as a user would write it.

use crate::common::assert_near;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_data::{Batch, Dataset, Example, IGNORE};
use halfbyte_frozen::Format;
use halfbyte_lora::{Adapter, Context, LoraConfig, Routing, attach};
use halfbyte_models::{Loading, Model, ModelFolder};
use halfbyte_ops::{Targets, cross_entropy::cross_entropy};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_train::{Alone, How, Micro, Objective, Result, Step, StepConfig, objective::CausalLm, parameters};
use std::{path::Path, sync::Arc};

const BETA: f32 = 0.5;

/// The mean over pairs of `-log sigmoid(beta (margin - margin of the base))`, where a margin is the log-probability of the chosen
/// row less that of the rejected one. A micro-batch is one pair, whose weight is `weights[first row]`.
struct Preference {
    weights: Vec<f32>,
}

impl Preference {
    /// Negative log-probabilities of both rows.
    fn rows<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> Result<[Var; 2]> {
        let hidden = micro.hidden(tape, model)?;
        let head = model.head(tape, &micro.how.ctx);
        let chosen = micro.batch.lengths[0];
        let row = |keep: std::ops::Range<usize>| {
            let target = |(at, target): (usize, &u32)| if keep.contains(&at) { *target } else { IGNORE };
            let targets = Targets::new(micro.batch.targets.iter().enumerate().map(target).collect());
            cross_entropy(tape, &hidden, head.as_head(), &targets, 1.0)
        };
        Ok([row(0..chosen)?, row(chosen..micro.batch.tokens)?])
    }
}

impl Objective for Preference {
    fn counts(&self, batch: &Batch) -> usize {
        batch.lengths.len() / 2
    }

    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> Result<Var> {
        let base = How { ctx: Context::new(Routing::Base), ..micro.how.clone() };
        let reference = self.rows(&Tape::disabled(), model, &Micro::new(micro.batch, base)?)?;
        let [chosen, rejected] = self.rows(tape, model, micro)?;
        let number = |it: &Var| it.value().to_f32_vec()[0];
        let margin = number(&rejected) - number(&chosen) - (number(&reference[1]) - number(&reference[0]));
        let scale = self.weights[micro.batch.rows[0]] / micro.how.denominator;
        // d/dx of -log sigmoid(beta x) is -beta sigmoid(-beta x), and the margin falls with the chosen row's loss.
        let slope = scale * BETA / (1.0 + (BETA * margin).exp());
        let loss = Tensor::scalar(scale * (-BETA * margin).exp().ln_1p());
        Ok(tape.record("preference", [&chosen, &rejected], loss, move |dy, _| {
            let dy = dy.to_f32_vec()[0];
            Ok([Some(Tensor::scalar(dy * slope)), Some(Tensor::scalar(-dy * slope))])
        }))
    }
}

struct Policy {
    model: Box<dyn Model>,
    adapter: Arc<Adapter>,
}

impl Policy {
    /// An adapter that does something already: B is not zero.
    fn new() -> Policy {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/llama-default");
        let loading = Loading::Frozen { format: &Format::DENSE, prepare: None };
        let mut model = ModelFolder::open(&fixture).unwrap().load(loading, &Device::Cpu, &mut |_| ()).unwrap();
        let config = LoraConfig { rank: 2, lora_alpha: 4.0, ..LoraConfig::default() };
        let (adapter, _) = attach(&model.modules(), &config, "policy", 1).unwrap();
        let policy = Policy { model, adapter: Arc::new(adapter) };
        for param in policy.params().iter().filter(|it| it.name().ends_with("lora_B.weight")) {
            let values = (0..param.value().len()).map(|i| 0.3 * (i as f32).sin()).collect();
            param.set(Tensor::from_vec(param.value().shape(), values));
        }
        policy
    }

    fn params(&self) -> Vec<Param> {
        parameters(self.model.as_ref(), Some(&self.adapter)).into_iter().map(|it| it.param).collect()
    }

    fn gradients(&self, objective: &dyn Objective, batches: &[Batch]) -> (f32, Vec<Vec<f32>>) {
        let config = StepConfig { compute: DType::F32, ..StepConfig::default() };
        let routing = Routing::One(self.adapter.clone());
        let step = Step { model: self.model.as_ref(), routing: &routing, objective, ranks: &Alone, config };
        let (loss, grads) = step.gradients(&self.params(), batches, (0, 1.0)).unwrap();
        (loss.to_f32_vec()[0], grads.iter().map(Tensor::to_f32_vec).collect())
    }
}

/// Three pairs: each row of 2 to 7 tokens, the first of which is given.
fn pairs() -> Vec<Batch> {
    let example = |row: usize| {
        let ids: Vec<u32> = (0..2 + (5 * row) % 6).map(|t| ((11 * row + 7 * t + 1) % 24) as u32).collect();
        Example { mask: vec![true; ids.len()], ids }
    };
    let data = Dataset::from_examples((0..6).map(example)).unwrap();
    [0, 2, 4].map(|first| data.collate(&[first, first + 1])).to_vec()
}

fn objective() -> Preference {
    Preference { weights: vec![1.0, 0.0, 0.25, 0.0, 2.0, 0.0] }
}

fn norm(grads: &[Vec<f32>]) -> f64 {
    grads.iter().flatten().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt()
}

/// Along a direction of length 1 the loss changes as the gradient says.
#[test]
fn a_loss_of_pairs_has_the_gradient_of_its_differences() {
    let (policy, batches, objective) = (Policy::new(), pairs(), objective());
    let (_, grads) = policy.gradients(&objective, &batches);
    let noise: Vec<Vec<f32>> = grads.iter().map(|it| (0..it.len()).map(|i| (i as f32 * 1.7).cos()).collect()).collect();
    // A step of 5e-3 changes the loss by 1e-3, which f32 knows to 1e-4 of that; the loss curves by as much.
    const STEP: f32 = 5e-3;
    for direction in [&grads, &noise] {
        let length = norm(direction);
        let expected: f64 =
            grads.iter().flatten().zip(direction.iter().flatten()).map(|it| f64::from(*it.0) * f64::from(*it.1)).sum();
        let loss_at = |step: f32| {
            let before: Vec<Tensor> = policy.params().iter().map(Param::value).collect();
            for (param, direction) in policy.params().iter().zip(direction) {
                let pairs = param.value().to_f32_vec().into_iter().zip(direction);
                let values = pairs.map(|(x, d)| x + step * d / length as f32).collect();
                param.set(Tensor::from_vec(param.value().shape(), values));
            }
            let loss = policy.gradients(&objective, &batches).0;
            policy.params().iter().zip(before).for_each(|it| it.0.set(it.1));
            f64::from(loss)
        };
        let slope = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * f64::from(STEP));
        let expected = expected / length;
        let tolerance = 1e-3 * norm(&grads);
        assert!((slope - expected).abs() < tolerance, "{slope} for {expected}, a gradient of length {}", norm(&grads));
    }
    assert!(norm(&grads) > 0.05, "there is something to compare: {}", norm(&grads));
}

#[test]
fn pairs_accumulate_with_their_weights() {
    let (policy, batches, objective) = (Policy::new(), pairs(), objective());
    let (loss, grads) = policy.gradients(&objective, &batches);
    let alone: Vec<_> = batches.iter().map(|it| policy.gradients(&objective, std::slice::from_ref(it))).collect();
    let mean = alone.iter().map(|it| it.0).sum::<f32>() / 3.0;
    assert!((loss - mean).abs() < 1e-6, "{loss} {mean}");
    let mut sum = vec![Vec::new(); grads.len()];
    for (_, one) in &alone {
        for (sum, one) in sum.iter_mut().zip(one) {
            sum.resize(one.len(), 0.0);
            sum.iter_mut().zip(one).for_each(|(sum, g)| *sum += g / 3.0);
        }
    }
    assert_near(&grads, &sum, 1e-5);
}

/// Before the first step the adapter is the base: no margin, and nothing of a preference is known.
#[test]
fn an_adapter_that_does_nothing_prefers_nothing() {
    let policy = Policy::new();
    for param in policy.params().iter().filter(|it| it.name().ends_with("lora_B.weight")) {
        param.set(Tensor::zeros(param.value().shape(), DType::F32));
    }
    let even = Preference { weights: vec![1.0; 6] };
    let (loss, _) = policy.gradients(&even, &pairs());
    assert!((loss - std::f32::consts::LN_2).abs() < 1e-6, "{loss}");
    let (other, _) = policy.gradients(&CausalLm, &pairs());
    assert!((other - loss).abs() > 0.1, "and it is another loss than that of the tokens");
}
