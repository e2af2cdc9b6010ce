use halfbyte_autograd::{Tape, Var};
use halfbyte_data::{Batch, Dataset, Example};
use halfbyte_frozen::Format;
use halfbyte_lora::{Adapter, LoraConfig, attach};
use halfbyte_models::{Loading, Model, ModelFolder};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_train::{
    BoxError, Checkpoints, Micro, Objective, Optim, OptimConfig, Result, RunConfig, RunState, StepConfig,
    objective::CausalLm, parameters,
};
use std::{path::Path, sync::Arc};

/// A LLaMA of one block, all of whose weights train.
pub(crate) fn model() -> Box<dyn Model> {
    model_on(&Device::Cpu)
}

pub(crate) fn model_on(device: &Device) -> Box<dyn Model> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/llama-default");
    ModelFolder::open(&fixture).unwrap().load(Loading::Trainable, device, &mut |_| ()).unwrap()
}

#[cfg(target_os = "linux")]
/// A model that trains in full, or one in a format with an adapter of a rank and a dropout.
pub(crate) fn adapted(
    fixture: &str,
    format: Option<&'static Format>,
    (rank, lora_dropout): (usize, f32),
    device: &Device,
) -> (Box<dyn Model>, Option<Arc<Adapter>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(fixture);
    let loading = match format {
        Some(format) => Loading::Frozen { format, prepare: None },
        None => Loading::Trainable,
    };
    let mut model = ModelFolder::open(&folder).unwrap().load(loading, device, &mut |_| ()).unwrap();
    if format.is_none() {
        return (model, None);
    }
    let config = LoraConfig { rank, lora_dropout, ..LoraConfig::default() };
    let (adapter, _) = attach(&model.modules(), &config, "mine", 1).unwrap();
    adapter.to_device(device).unwrap();
    (model, Some(Arc::new(adapter)))
}

/// So many rows of two to seven tokens, all of which train.
pub(crate) fn rows(count: usize) -> Dataset {
    let example = |row: usize| {
        let ids: Vec<u32> = (0..2 + row % 6).map(|t| ((7 * row + 5 * t + 3) % 24) as u32).collect();
        Example { mask: vec![true; ids.len()], ids }
    };
    Dataset::from_examples((0..count).map(example)).unwrap()
}

/// One row a batch.
pub(crate) fn one_by_one(data: &Dataset) -> Vec<Batch> {
    (0..data.len()).map(|row| data.collate(&[row])).collect()
}

/// In f32, so that results can be compared closely.
pub(crate) fn config() -> RunConfig {
    let step = StepConfig { compute: DType::F32, ..StepConfig::default() };
    RunConfig { step, learning_rate: 1e-3, ..RunConfig::default() }
}

pub(crate) fn optim(model: &dyn Model) -> Optim {
    Optim::new(&Device::Cpu, &parameters(model, None), &OptimConfig::default()).unwrap()
}

/// Every parameter's numbers, in order.
pub(crate) fn values(model: &dyn Model) -> Vec<Vec<f32>> {
    parameters(model, None).iter().map(|it| it.param.value().to_f32_vec()).collect()
}

/// Asserts that two lists of tensors differ by at most `tolerance` times the largest number of each.
#[track_caller]
pub(crate) fn assert_near(got: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let scale = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let error = got.iter().zip(expected).fold(0.0f32, |a, (g, e)| a.max((g - e).abs()));
        assert!(error <= tolerance * scale, "tensor {at}: off by {error:e} of {scale:e}");
    }
}

/// Causal language modelling whose loss and gradient are multiplied, to see what becomes of numbers that are none.
pub(crate) struct Spoiled {
    pub(crate) loss: f32,
    pub(crate) gradient: f32,
}

impl Objective for Spoiled {
    fn counts(&self, batch: &Batch) -> usize {
        batch.trained
    }

    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> Result<Var> {
        let y = CausalLm.loss(tape, model, micro)?;
        let (value, gradient) = (y.value().to_f32_vec()[0] * self.loss, self.gradient);
        let loss = Tensor::scalar(value).to_device(&y.value().device())?;
        Ok(tape.record("spoiled", [&y], loss, move |dy, _| Ok([Some(Tensor::scalar(dy.to_f32_vec()[0] * gradient))])))
    }
}

/// Adds nothing to a checkpoint.
pub(crate) fn nothing_beside(_: &Path) -> Result<(), BoxError> {
    Ok(())
}

/// The state of the newest checkpoint, if there is one, whose tensors are restored.
pub(crate) fn newest(checkpoints: &Checkpoints, optim: &mut Optim) -> Option<RunState> {
    let (_, path) = checkpoints.all().unwrap().pop()?;
    let state = RunState::read(&path).unwrap();
    optim.load(&path, state.taken()).unwrap();
    Some(state)
}
