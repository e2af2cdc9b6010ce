//! Checkpoints: everything that going on needs, bit for bit. A checkpoint appears whole or not at all.

#[cfg(test)]
mod parsers;
mod sound;
mod tensors;

use crate::{Best, LossScale, Optim, Result};
use halfbyte_data::Position;
use halfbyte_files::{DraftFolder, Error, read_text, remove_folder, sweep, write_atomic};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const TENSORS: &str = "training_state.safetensors";
/// How the name of a checkpoint's folder begins, before the step.
const NAME: &str = "checkpoint-";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps of the run, those included that were not taken because a gradient overflowed.
    pub step: usize,
    /// Steps that the optimizer took; absent: as many, as versions had it that did not tell them apart.
    #[serde(default)]
    pub optimizer_steps: Option<usize>,
    /// Passes over the data completed.
    pub epoch: u64,
    /// Of a stream, rows of this pass that were behind when the present ones were read; else 0.
    #[serde(default)]
    pub row: usize,
    /// Batches of this pass completed; of a stream, of the rows that were read together.
    pub batch: usize,
    /// Examples of the data set, to know it by.
    pub examples: usize,
    /// Wall time.
    pub seconds: f64,
    /// Whether each trainable tensor has had a gradient other than zero.
    pub reached: Vec<bool>,
    /// The factor on the loss, for f16.
    pub loss_scale: Option<LossScale>,
    /// What the evaluations so far have come to, if there were some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// What the run's owner wants to find again, such as its settings.
    #[serde(flatten)]
    pub notes: Map<String, Value>,
}

impl RunState {
    /// Reads where a checkpoint stands.
    ///
    /// # Errors
    /// If the file is missing or damaged, or of another step than its folder's name says.
    pub fn read(checkpoint: &Path) -> Result<RunState> {
        let text = read_text(&checkpoint.join(STATE))?;
        RunState::parse(checkpoint, &text)
    }

    /// What a checkpoint's file says.
    fn parse(checkpoint: &Path, text: &str) -> Result<RunState> {
        let file = checkpoint.join(STATE);
        let state: RunState = serde_json::from_str(text).map_err(|e| not_understood(&file, &e))?;
        let wrong = |message: String| Err(Error::File { path: file.clone(), message }.into());
        let RunState { step, optimizer_steps, .. } = state;
        if let Some(named) = step_of(checkpoint).filter(|it| *it != step) {
            return wrong(format!(
                "is of step {step}, but its folder's name says {named}; give the folder the name checkpoint-{step}, or remove it to go on from an earlier one"
            ));
        }
        if optimizer_steps.is_some_and(|it| it > step) {
            return wrong(format!(
                "is damaged: of {step} steps the optimizer cannot have taken {}; remove this checkpoint to go on from an earlier one",
                state.taken()
            ));
        }
        Ok(state)
    }

    /// Steps that the optimizer took: what [`Optim::load`] wants to know.
    pub fn taken(&self) -> usize {
        self.optimizer_steps.unwrap_or(self.step)
    }

    /// What the run's owner kept under `key` in this checkpoint.
    ///
    /// # Errors
    /// If nothing is there, or something that `T` does not take, as another version may have kept it.
    pub fn note<T: DeserializeOwned>(&self, checkpoint: &Path, key: &str) -> Result<T> {
        let value = self.notes.get(key).cloned().unwrap_or_default();
        Ok(serde_json::from_value(value).map_err(|e| not_understood(&checkpoint.join(STATE), &e))?)
    }

    /// The position in the data.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, row: self.row, batch: self.batch }
    }
}

/// The checkpoints of a run: folders `checkpoint-STEP` beside each other.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those in `folder`, which must exist when one is saved.
    pub fn new(folder: &Path) -> Checkpoints {
        Checkpoints { folder: folder.to_owned() }
    }

    /// All of them, by rising step.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn all(&self) -> Result<Vec<(usize, PathBuf)>> {
        let mut found = Vec::new();
        for path in self.entries()? {
            found.extend(step_of(&path).map(|it| (it, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Clears away what a killed run was writing or removing. Only one run at a time may have a folder.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn clear_drafts(&self) -> Result<()> {
        Ok(sweep(&self.folder)?)
    }

    /// Writes `checkpoint-STEP`: the state, the parameters and what the optimizer keeps for them, and what `beside` adds to the folder.
    ///
    /// # Errors
    /// If something is not finite ([`Error::NotFinite`](crate::Error::NotFinite)) or cannot be written; then the earlier
    /// checkpoints are as they were.
    pub fn save(
        &self,
        state: &RunState,
        optim: &mut Optim,
        beside: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.path(state.step);
        let draft = DraftFolder::create(&path)?;
        tensors::write(&draft.folder().join(TENSORS), optim)?;
        beside(draft.folder())?;
        let text = serde_json::to_string_pretty(state).map_err(|e| io(&path)(e.into()))?;
        write_atomic(&draft.folder().join(STATE), text.as_bytes())?;
        // An earlier one of the same step goes only when the new one is in its place.
        draft.finish()?;
        Ok(path)
    }

    /// The folder of the checkpoint of a step, there or not.
    pub fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("{NAME}{step}"))
    }

    /// Removes the oldest beyond `keep`, but neither that of step `best`, which counts among those kept, nor the newest. Each loses
    /// its name first, so that none is ever there in part.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn prune(&self, keep: usize, best: Option<usize>) -> Result<()> {
        let mut all = self.all()?;
        let surplus = all.len().saturating_sub(keep);
        all.pop();
        let old = all.iter().filter(|it| Some(it.0) != best);
        Ok(old.take(surplus).try_for_each(|it| remove_folder(&it.1))?)
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        let here = io(&self.folder);
        let paths = std::fs::read_dir(&self.folder).map_err(&here)?.map(|it| it.map(|it| it.path()));
        Ok(paths.collect::<std::io::Result<_>>().map_err(here)?)
    }
}

impl Optim {
    /// Restores parameters and state as they were in a checkpoint after the optimizer had taken so many steps
    /// ([`RunState::taken`]), bit for bit.
    ///
    /// # Errors
    /// A checkpoint that is damaged, holds what is no number, or belongs to another run; then nothing has changed. A disk or a
    /// device that fails halfway.
    pub fn load(&mut self, checkpoint: &Path, taken: usize) -> Result<()> {
        tensors::read(&checkpoint.join(TENSORS), taken, self)
    }
}

/// A state that has other fields than this version knows, and what to do.
fn not_understood(file: &Path, error: &serde_json::Error) -> Error {
    let message = format!(
        "{error}; if another version wrote it, go on with that one; if it is damaged, remove this checkpoint to go on from an earlier one"
    );
    Error::File { path: file.to_owned(), message }
}

/// The step that a checkpoint's name says.
fn step_of(checkpoint: &Path) -> Option<usize> {
    checkpoint.file_name()?.to_str()?.strip_prefix(NAME)?.parse().ok()
}

/// For `map_err` on what the system says about `path`.
fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), source }
}
