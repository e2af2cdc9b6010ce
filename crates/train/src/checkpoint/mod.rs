//! Checkpoints: everything that going on needs, bit for bit. A checkpoint appears whole or not at all.

mod tensors;

use crate::{LossScale, Optim, Result};
use halfbyte_data::Position;
use halfbyte_files::{DraftFolder, Error, write_atomic};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const TENSORS: &str = "training_state.safetensors";
/// What a checkpoint that is being written is called among drafts, and how its name begins.
const DRAFT_KIND: &str = "checkpoint";
const DRAFT: &str = ".tmp-checkpoint-";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps taken.
    pub step: usize,
    /// Passes over the data completed.
    pub epoch: u64,
    /// Batches of this pass completed.
    pub batch: usize,
    /// Examples of the data set, to know it by.
    pub examples: usize,
    /// Wall time.
    pub seconds: f64,
    /// Whether each trainable tensor has had a gradient other than zero.
    pub reached: Vec<bool>,
    /// The factor on the loss, for f16.
    pub loss_scale: Option<LossScale>,
    /// What the run's owner wants to find again, such as its settings.
    #[serde(flatten)]
    pub notes: Map<String, Value>,
}

impl RunState {
    /// Reads where a checkpoint stands.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn read(checkpoint: &Path) -> Result<RunState> {
        let file = checkpoint.join(STATE);
        let text = std::fs::read_to_string(&file).map_err(io(&file))?;
        Ok(serde_json::from_str(&text).map_err(|e| not_understood(&file, &e))?)
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
        Position { epoch: self.epoch, batch: self.batch }
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
            let step = path.file_name().and_then(|it| it.to_str()?.strip_prefix("checkpoint-")?.parse().ok());
            found.extend(step.map(|it: usize| (it, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Clears away what a killed run was writing.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn clear_drafts(&self) -> Result<()> {
        let is_draft = |path: &PathBuf| path.file_name().is_some_and(|it| it.to_string_lossy().starts_with(DRAFT));
        self.entries()?.iter().filter(|it| is_draft(it)).try_for_each(|it| remove(it))
    }

    /// Writes `checkpoint-STEP`: the state, the parameters and what the optimizer keeps for them, and what `beside` adds to the folder.
    /// Then removes the oldest beyond `keep`.
    ///
    /// # Errors
    /// If something cannot be written; then the earlier checkpoints are as they were.
    pub fn save(
        &self,
        state: &RunState,
        optim: &mut Optim,
        keep: usize,
        beside: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.folder.join(format!("checkpoint-{}", state.step));
        let draft = DraftFolder::create(&path, DRAFT_KIND)?;
        tensors::write(&draft.folder().join(TENSORS), optim)?;
        beside(draft.folder())?;
        let text = serde_json::to_string_pretty(state).map_err(|e| io(&path)(e.into()))?;
        write_atomic(&draft.folder().join(STATE), text.as_bytes())?;
        // An earlier one of the same step goes only when the new one is in its place.
        draft.finish()?;
        let all = self.all()?;
        all.iter().take(all.len().saturating_sub(keep)).try_for_each(|it| remove(&it.1))?;
        Ok(path)
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        let here = io(&self.folder);
        let paths = std::fs::read_dir(&self.folder).map_err(&here)?.map(|it| it.map(|it| it.path()));
        Ok(paths.collect::<std::io::Result<_>>().map_err(here)?)
    }
}

impl Optim {
    /// Restores parameters and state as they were in a checkpoint after `step` steps, bit for bit.
    ///
    /// # Errors
    /// A checkpoint that is damaged or belongs to another run; then nothing has changed. A disk or a device that fails halfway.
    pub fn load(&mut self, checkpoint: &Path, step: usize) -> Result<()> {
        tensors::read(&checkpoint.join(TENSORS), step, self)
    }
}

/// A state that has other fields than this version knows, and what to do.
fn not_understood(file: &Path, error: &serde_json::Error) -> Error {
    let message = format!(
        "{error}; if another version wrote it, go on with that one; if it is damaged, remove this checkpoint to go on from an earlier one"
    );
    Error::File { path: file.to_owned(), message }
}

fn remove(folder: &Path) -> Result<()> {
    Ok(std::fs::remove_dir_all(folder).map_err(io(folder))?)
}

/// For `map_err` on what the system says about `path`.
fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), source }
}
