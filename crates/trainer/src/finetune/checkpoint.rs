//! Checkpoints: everything that going on needs, bit for bit. A checkpoint appears whole or not at all.

use super::{
    args::FinetuneArgs,
    optimizer::Optimizer,
    output::{DRAFT_KIND, RunFolder},
    step::LossScale,
};
use crate::{base_record::BaseRecord, failure::user_error};
use anyhow::Context;
use halfbyte_autograd::Param;
use halfbyte_data::Position;
use halfbyte_files::{DraftFolder, Dtype, Placed, TensorFile, TensorSpec, TensorWriter, write_atomic};
use halfbyte_lora::{Adapter, save_adapter};
use halfbyte_paged_optim::{StateFormat, StatePart};
use halfbyte_tensor::{DType, Device, Tensor};
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
    let draft = DraftFolder::create(&path, DRAFT_KIND)
        .with_context(|| format!("{}: no checkpoint can be written", folder.path().display()))?;
    write_tensors(&draft.folder().join(TENSORS), contents)?;
    if let Some((adapter, base)) = contents.adapter {
        save_adapter(draft.folder(), adapter)?;
        base.write(draft.folder())?;
    }
    write_atomic(&draft.folder().join(STATE), serde_json::to_string_pretty(state)?.as_bytes())?;
    // An earlier one of the same step goes only when the new one is in its place.
    draft.finish()?;
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
    let saved = Saved::open(&path.join(TENSORS))?;
    for param in params {
        let (value, name) = (param.value(), format!("value.{}", param.name()));
        let place = saved.get(&name, value.len(), DType::F32.size())?;
        let restored = Tensor::filled(value.shape(), DType::F32, |bytes| saved.file.read_part(place, 0, bytes))?;
        param.set(restored.to_device(&value.device())?);
    }
    let specs = optimizer.specs().to_vec();
    optimizer.restore(step as u64, &mut |place, out| {
        let spec = &specs[place.param];
        let size = place.part.element_bytes(spec.state);
        let name = format!("{}.{}", part_name(place.part, spec.state), place.name);
        let whole = saved.get(&name, place.part.len(spec.len), size).map_err(io::Error::other)?;
        saved.file.read_part(whole, place.offset * size, out).map_err(io::Error::other)
    })?;
    Ok(())
}

/// A checkpoint's tensors.
struct Saved {
    file: TensorFile,
}

impl Saved {
    fn open(path: &Path) -> anyhow::Result<Saved> {
        let damaged = |e: halfbyte_files::Error| match e {
            halfbyte_files::Error::File { .. } => {
                user_error(format!("{e}; remove this checkpoint to go on from an earlier one"))
            }
            other => other.into(),
        };
        Ok(Saved { file: TensorFile::open(path).map_err(damaged)? })
    }

    /// Where a tensor of `len` elements of `size` bytes lies.
    fn get(&self, name: &str, len: usize, size: usize) -> anyhow::Result<&Placed> {
        let wrong = |message: String| {
            let path = self.file.path().display();
            user_error(format!("{path}: {message}; remove this checkpoint to go on from an earlier one"))
        };
        let place = self.file.get(name).ok_or_else(|| wrong(format!("lacks {name}")))?;
        if place.bytes() != len * size {
            return Err(wrong(format!("{name} has {} values of {size} bytes, expected {len}", place.bytes() / size)));
        }
        Ok(place)
    }
}

fn write_tensors(path: &Path, contents: &mut Contents<'_>) -> anyhow::Result<()> {
    let mut announced = Vec::new();
    for param in contents.params {
        announced.push(TensorSpec::new(format!("value.{}", param.name()), Dtype::F32, param.value().shape()));
    }
    let specs = contents.optimizer.specs().to_vec();
    for (param, spec) in contents.params.iter().zip(&specs) {
        for &part in StatePart::of(spec.state) {
            let dtype = if part.element_bytes(spec.state) == 1 { Dtype::U8 } else { Dtype::F32 };
            let (name, len) = (format!("{}.{}", part_name(part, spec.state), param.name()), part.len(spec.len));
            // Numbers of an element have its parameter's shape, those of a block stand in a row.
            let shape = if len == spec.len { param.value().shape().to_vec() } else { vec![len] };
            announced.push(TensorSpec::new(name, dtype, &shape));
        }
    }
    let mut writer = TensorWriter::create(path, announced)?;
    for param in contents.params {
        let value = param.value().to_device(&Device::Cpu)?;
        writer.write(&format!("value.{}", param.name()), &value.le_bytes())?;
    }
    // Pieces of a tensor follow each other.
    contents.optimizer.visit_state(&mut |place, piece| {
        let name = format!("{}.{}", part_name(place.part, specs[place.param].state), place.name);
        writer.write(&name, piece).map_err(io::Error::other)
    })?;
    Ok(writer.finish()?)
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
