//! Checkpoints: everything that going on needs, bit for bit. A checkpoint appears whole or not at all.

use super::{
    args::FinetuneArgs,
    optimizer::Optimizer,
    output::{DRAFT, RunFolder},
    step::LossScale,
};
use crate::{base_record::BaseRecord, failure::user_error};
use anyhow::Context;
use halfbyte_autograd::Param;
use halfbyte_data::Position;
use halfbyte_lora::{Adapter, save_adapter, write_atomic};
use halfbyte_models::SafetensorsWriter;
use halfbyte_paged_optim::{StateFormat, StatePart};
use halfbyte_tensor::{DType, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

const STATE: &str = "trainer_state.json";
const TENSORS: &str = "training_state.safetensors";

/// Settings that may change between a run and its continuation.
const MAY_CHANGE: [&str; 15] = [
    "device",
    "eval_data",
    "eval_labels",
    "eval_rows",
    "eval_steps",
    "gradient_checkpointing",
    "logging_steps",
    "max_steps",
    "no_eval_before",
    "num_train_epochs",
    "optim_resident_mib",
    "samples",
    "save_steps",
    "save_total_limit",
    "threads",
];

/// What younger settings were, in effect, when checkpoints did not name them yet.
const BEFORE_THERE_WAS: [(&str, &str); 1] = [("packing", "off")];

/// Where a run stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunState {
    pub(crate) step: usize,
    pub(crate) epoch: u64,
    pub(crate) batch: usize,
    pub(crate) examples: usize,
    pub(crate) eval_loss_before: Option<f64>,
    pub(crate) seconds: f64,
    /// Whether each trainable tensor has had a gradient other than zero.
    pub(crate) reached: Vec<bool>,
    /// The factor on the loss, for f16.
    pub(crate) loss_scale: Option<LossScale>,
    pub(crate) settings: FinetuneArgs,
}

impl RunState {
    /// The position in the data.
    pub(crate) fn position(&self) -> Position {
        Position { epoch: self.epoch, batch: self.batch }
    }
}

/// What a checkpoint saves beside the state.
pub(crate) struct Contents<'a> {
    pub(crate) params: &'a [Param],
    pub(crate) optimizer: &'a mut Optimizer,
    /// The adapter and its base's format; none if the whole model trains.
    pub(crate) adapter: Option<(&'a Adapter, BaseRecord)>,
}

/// Writes `checkpoint-STEP`, then removes the oldest beyond `keep`.
pub(crate) fn save(
    folder: &RunFolder,
    state: &RunState,
    contents: &mut Contents<'_>,
    keep: usize,
) -> anyhow::Result<PathBuf> {
    let path = folder.checkpoint(state.step);
    let draft = tempfile::Builder::new()
        .prefix(DRAFT)
        .tempdir_in(folder.path())
        .with_context(|| format!("{}: no checkpoint can be written", folder.path().display()))?;
    write_tensors(&draft.path().join(TENSORS), contents)?;
    if let Some((adapter, base)) = contents.adapter {
        save_adapter(draft.path(), adapter)?;
        base.write(draft.path())?;
    }
    write_atomic(&draft.path().join(STATE), serde_json::to_string_pretty(state)?.as_bytes())?;
    // An earlier one of the same step steps aside and goes only when the new one is in its place.
    let aside = tempfile::Builder::new().prefix(".tmp-checkpoint-").tempdir_in(folder.path())?;
    if path.exists() {
        std::fs::rename(&path, aside.path().join("replaced")).with_context(|| path.display().to_string())?;
    }
    let draft = draft.keep();
    std::fs::rename(&draft, &path)
        .with_context(|| format!("{}: the checkpoint could not be put in its place", path.display()))?;
    let all = folder.checkpoints()?;
    for (_, old) in all.iter().take(all.len().saturating_sub(keep)) {
        std::fs::remove_dir_all(old).with_context(|| old.display().to_string())?;
    }
    Ok(path)
}

/// Reads where a checkpoint stands, and refuses one of another run.
pub(crate) fn read_state(path: &Path, settings: &FinetuneArgs, examples: usize) -> anyhow::Result<RunState> {
    let file = path.join(STATE);
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let state: RunState = serde_json::from_str(&text).map_err(|e| user_error(format!("{}: {e}", file.display())))?;
    let (mut then, now) = (toml::Table::try_from(&state.settings)?, toml::Table::try_from(settings)?);
    for (key, was) in BEFORE_THERE_WAS {
        then.entry(key).or_insert_with(|| was.into());
    }
    let keys = then.keys().chain(now.keys());
    if let Some(key) = keys.filter(|it| !MAY_CHANGE.contains(&it.as_str())).find(|it| then.get(*it) != now.get(*it)) {
        let show = |table: &toml::Table| table.get(key).map_or_else(|| "unset".to_owned(), ToString::to_string);
        return Err(user_error(format!(
            "{}: is a checkpoint of another run: {key} was {} and is now {}; use the same settings, or --overwrite",
            path.display(),
            show(&then),
            show(&now)
        )));
    }
    if state.examples != examples {
        return Err(user_error(format!(
            "{}: is a checkpoint of another run: the data had {} examples and now has {examples}",
            path.display(),
            state.examples
        )));
    }
    Ok(state)
}

/// Restores parameters and optimizer, bit for bit.
pub(crate) fn restore(path: &Path, step: usize, params: &[Param], optimizer: &mut Optimizer) -> anyhow::Result<()> {
    let file = path.join(TENSORS);
    let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
    let wrong = |message: String| {
        user_error(format!("{}: {message}; remove this checkpoint to go on from an earlier one", file.display()))
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    let read = |name: &str, len: usize, size: usize| {
        let data = tensors.tensor(name).map_err(|_| wrong(format!("lacks {name}")))?.data();
        if data.len() == len * size {
            Ok(data)
        } else {
            Err(wrong(format!("{name} has {} values of {size} bytes, expected {len}", data.len() / size)))
        }
    };
    for param in params {
        let shape = param.value().shape().to_vec();
        let bytes = read(&format!("value.{}", param.name()), shape.iter().product(), 4)?;
        let values = numbers(bytes);
        param.set(Tensor::from_vec(&shape, values).to_device(&param.value().device())?);
    }
    let specs = optimizer.specs().to_vec();
    optimizer.restore(step as u64, &mut |place, out| {
        let spec = &specs[place.param];
        let size = place.part.element_bytes(spec.state);
        let name = format!("{}.{}", part_name(place.part, spec.state), place.name);
        let bytes = read(&name, place.part.len(spec.len), size).map_err(io::Error::other)?;
        out.copy_from_slice(&bytes[place.offset * size..][..out.len()]);
        Ok(())
    })?;
    Ok(())
}

fn write_tensors(path: &Path, contents: &mut Contents<'_>) -> anyhow::Result<()> {
    let shape_of = |param: &Param| param.value().shape().to_vec();
    let mut announced: Vec<(String, Vec<usize>, DType)> = Vec::new();
    for param in contents.params {
        announced.push((format!("value.{}", param.name()), shape_of(param), DType::F32));
    }
    // Numbers of an element have its parameter's shape, those of a block stand in a row.
    let shape_of_part = |part: StatePart, param: &Param| {
        let len = param.value().len();
        if part.len(len) == len { shape_of(param) } else { vec![part.len(len)] }
    };
    let specs = contents.optimizer.specs().to_vec();
    for (param, spec) in contents.params.iter().zip(&specs) {
        for &part in StatePart::of(spec.state) {
            let dtype = if part.element_bytes(spec.state) == 1 { DType::U8 } else { DType::F32 };
            let name = format!("{}.{}", part_name(part, spec.state), param.name());
            announced.push((name, shape_of_part(part, param), dtype));
        }
    }
    let mut writer = SafetensorsWriter::create_mixed(path, announced)?;
    for param in contents.params {
        writer.write(&format!("value.{}", param.name()), &param.value())?;
    }
    // Pieces of a tensor follow each other; one tensor at a time is put together.
    let (params, mut whole) = (contents.params, Vec::new());
    contents.optimizer.visit_state(&mut |place, piece| {
        let (param, state) = (&params[place.param], specs[place.param].state);
        let size = place.part.element_bytes(state);
        whole.extend_from_slice(piece);
        if whole.len() < size * place.part.len(param.value().len()) {
            return Ok(());
        }
        let shape = shape_of_part(place.part, param);
        let bytes = std::mem::take(&mut whole);
        let tensor = match size {
            1 => Tensor::from_vec(&shape, bytes),
            _ => Tensor::from_vec(&shape, numbers(&bytes)),
        };
        writer.write(&format!("{}.{}", part_name(place.part, state), place.name), &tensor).map_err(io::Error::other)
    })?;
    Ok(writer.finish()?)
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Torch's names of the moments, and those of bitsandbytes for what is in 8 bits.
fn part_name(part: StatePart, format: StateFormat) -> &'static str {
    match (format, part) {
        (StateFormat::F32, StatePart::First) => "exp_avg",
        (StateFormat::F32, _) => "exp_avg_sq",
        (_, StatePart::First) => "state1",
        (_, StatePart::Second) => "state2",
        (_, StatePart::FirstAbsmax) => "absmax1",
        (_, StatePart::SecondAbsmax) => "absmax2",
    }
}
