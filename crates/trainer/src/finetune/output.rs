//! The folder of a run: what lies where, and what an earlier run left there.

use crate::failure::user_error;
use anyhow::Context;
use halfbyte_train::Checkpoints;
use std::path::{Path, PathBuf};

/// Files that a run writes at the top of its folder.
const FILES: [&str; 8] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "halfbyte_base.json",
    "config.json",
    "config.toml",
    "metrics.jsonl",
    "model.safetensors",
    "summary.json",
];

/// The folder that `--output` names.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes the folder, or refuses one that holds something, unless it is to be replaced or continued. Nothing in it
    /// changes before [`begin`](Self::begin).
    pub(crate) fn prepare(path: &Path, overwrite: bool, resume: bool) -> anyhow::Result<RunFolder> {
        let folder = RunFolder { path: path.to_owned() };
        if path.exists() && !path.is_dir() {
            return Err(user_error(format!("{}: --output is a file; name a folder", path.display())));
        }
        std::fs::create_dir_all(path)
            .with_context(|| format!("{}: the output folder cannot be made", path.display()))?;
        let occupied = std::fs::read_dir(path).with_context(|| path.display().to_string())?.next().is_some();
        if occupied && !overwrite && !resume {
            return Err(user_error(format!(
                "{}: the output folder is not empty; --overwrite replaces what an earlier run left, --resume goes on from its newest checkpoint",
                path.display()
            )));
        }
        if resume && folder.checkpoints().all()?.is_empty() {
            return Err(user_error(format!(
                "{}: --resume found no checkpoint there; leave it out to start",
                path.display()
            )));
        }
        Ok(folder)
    }

    /// Clears away what a killed run was writing and, with `overwrite`, an earlier run's result.
    pub(crate) fn begin(&self, overwrite: bool) -> anyhow::Result<()> {
        self.checkpoints().clear_drafts()?;
        if overwrite { self.clear() } else { Ok(()) }
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file at its top.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Its checkpoints.
    pub(crate) fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(&self.path)
    }

    /// Removes what a run writes, and nothing else.
    fn clear(&self) -> anyhow::Result<()> {
        for (_, path) in self.checkpoints().all()? {
            std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        for path in FILES.map(|it| self.file(it)) {
            if path.exists() {
                std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }
}
