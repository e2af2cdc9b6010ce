//! A stranger's program: a model out of numbers of its own, trained, interrupted, saved and trained on.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use halfbyte_autograd::Param;
use halfbyte_data::{Dataset, Example};
use halfbyte_lora::{Base, Linear, Role, Weight};
use halfbyte_models::{Model, ModelConfig, Weights, build};
use halfbyte_tensor::{Device, Tensor};
use halfbyte_train::{Checkpoints, End, Event, Optim, OptimConfig, Run, RunConfig, RunState, Saving, parameters};

const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8,
    "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10,
    "max_position_embeddings": 8, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false
}"#;

/// Weights that all train.
struct Numbers;

impl Numbers {
    fn param(name: &str, shape: &[usize], around: f32) -> Param {
        let values = (0..shape.iter().product()).map(|i| around + 0.3 * ((7 * i + name.len()) as f32).sin());
        Param::new(name, Tensor::from_vec(shape, values.collect::<Vec<f32>>()))
    }

    fn matrix(path: &str, dims: (usize, usize)) -> Base {
        Base::Trainable(Self::param(&format!("{path}.weight"), &[dims.0, dims.1], 0.0))
    }
}

impl Weights for Numbers {
    fn linear(&mut self, path: &str, dims: (usize, usize), _: bool) -> halfbyte_models::Result<Linear> {
        Ok(Linear::new(path, Self::matrix(path, dims), None))
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> halfbyte_models::Result<Weight> {
        let around = if role == Role::Norm { 1.0 } else { 0.0 };
        Ok(Weight::trainable(Self::param(name, shape, around), role))
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> halfbyte_models::Result<Linear> {
        Ok(Linear::head(path, Self::matrix(path, dims)))
    }
}

/// Trains until step `stop`, from the newest checkpoint if there is one; gives the end, the losses and all weights.
fn train(folder: &Path, stop: usize) -> Result<(End, Vec<f32>, Vec<Vec<f32>>), Box<dyn std::error::Error>> {
    let model: Box<dyn Model> = build(&ModelConfig::parse(Path::new("config.json"), CONFIG)?, &mut Numbers)?;
    let row = |first: u32| Example { ids: (0..6).map(|t| (first + 3 * t) % 10).collect(), mask: vec![true; 6] };
    let data = Dataset::from_examples((0..20).map(row))?;
    let mut optim = Optim::new(&Device::Cpu, &parameters(model.as_ref(), None), &OptimConfig::default())?;

    let checkpoints = Checkpoints::new(folder);
    let state = match checkpoints.all()?.pop() {
        None => None,
        Some((_, path)) => {
            let state = RunState::read(&path)?;
            optim.load(&path, state.taken())?;
            Some(state)
        }
    };
    let (interrupt, mut losses, mut beside) = (AtomicBool::new(false), Vec::new(), |_: &Path| Ok(()));
    let mut listen = |event: &Event<'_>| {
        if let Event::Step(it) = event {
            losses.push(it.loss);
            interrupt.store(it.step == stop, Ordering::SeqCst);
        }
        Ok(())
    };
    let config = RunConfig { learning_rate: 1e-2, ..RunConfig::default() };
    let mut run = Run::new(config, (model.as_ref(), None), &mut optim, &data);
    run.interrupt = &interrupt;
    run.observers.push(&mut listen);
    let notes = Default::default();
    run.saving = Some(Saving { checkpoints: &checkpoints, every: 0, keep: 1, best: false, notes, beside: &mut beside });
    let end = run.train(state)?;
    let weights = parameters(model.as_ref(), None).iter().map(|it| it.param.value().to_f32_vec()).collect();
    Ok((end, losses, weights))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = |name: &str| std::env::temp_dir().join(format!("halfbyte-train-{name}-{}", std::process::id()));
    let (whole, parts) = (folder("whole"), folder("parts"));
    for it in [&whole, &parts] {
        std::fs::create_dir_all(it)?;
    }
    let (end, losses, expected) = train(&whole, 0)?;
    assert_eq!(end, End::Finished { steps: 5 });
    assert!(losses[4] < losses[0], "the rows are learned: {losses:?}");
    let (end, first, _) = train(&parts, 3)?;
    assert!(matches!(end, End::Interrupted { step: 3, total: 5, checkpoint: Some(_) }));
    let (end, rest, weights) = train(&parts, 0)?;
    assert_eq!(end, End::Finished { steps: 5 });
    assert_eq!([first, rest].concat(), losses, "stopped and gone on: the same losses");
    assert!(weights == expected, "and the same weights");
    for it in [&whole, &parts] {
        std::fs::remove_dir_all(it)?;
    }
    Ok(())
}
