//! The folder of a run: what lies where, and what an earlier run left there.

use crate::{console, failure::user_error};
use anyhow::Context;
use halfbyte_files::{Lock, make_folder, remove_folder, sweep};
use halfbyte_train::Checkpoints;
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// Files that a run writes at the top of its folder. Those by which a folder is taken for a result come first: they go first,
/// and are written last.
const FILES: [&str; 9] = [
    SUMMARY,
    "adapter_config.json",
    "config.json",
    "adapter_model.safetensors",
    "halfbyte_base.json",
    "model.safetensors",
    SETTINGS,
    "metrics.jsonl",
    "profile.json",
];

/// Written when everything else is there.
const SUMMARY: &str = "summary.json";
/// Written when a run begins.
const SETTINGS: &str = "config.toml";
/// Locked by the run that writes into the folder.
const LOCK: &str = ".lock";

/// The folder that `--output` names, as long as this value lives nobody else's.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    _lock: Lock,
}

impl RunFolder {
    /// Makes the folder, or refuses one that holds something, unless it is to be replaced or continued, and one that another run
    /// writes into. But for what killed runs were writing nothing in it changes before [`begin`](Self::begin).
    pub(crate) fn prepare(path: &Path, overwrite: bool, resume: bool) -> anyhow::Result<RunFolder> {
        let shown = path.display();
        if path.exists() && !path.is_dir() {
            return Err(user_error(format!("{shown}: --output is a file; name a folder")));
        }
        if overwrite {
            refuse_model(path)?;
        }
        make_folder(path).with_context(|| format!("{shown}: the output folder cannot be made"))?;
        let Some(lock) = Lock::take(&path.join(LOCK))? else {
            return Err(user_error(format!(
                "{shown}: another run is writing into this folder; wait for its end, or name another folder with --output"
            )));
        };
        if !lock.is_effective() {
            console::warn(&format!(
                "{shown}: this file system knows no locks; see to it that no other run writes there"
            ));
        }
        sweep(path)?;
        let folder = RunFolder { path: path.to_owned(), _lock: lock };
        folder.check(overwrite, resume)?;
        Ok(folder)
    }

    fn check(&self, overwrite: bool, resume: bool) -> anyhow::Result<()> {
        let refuse = |why: &str| Err(user_error(format!("{}: {why}", self.path.display())));
        let names = self.names()?;
        let checkpoints = !self.checkpoints().all()?.is_empty();
        if !names.is_empty() && !overwrite && !resume {
            return refuse(match checkpoints {
                true => {
                    "the output folder is not empty; --overwrite replaces what an earlier run left, --resume goes on from its newest checkpoint"
                }
                false => "the output folder is not empty; --overwrite replaces what an earlier run left",
            });
        }
        if !resume || checkpoints {
            return Ok(());
        }
        if FILES.iter().take_while(|it| **it != SETTINGS).any(|it| self.file(it).exists()) {
            return refuse("--resume found a result, but no checkpoint to go on from; --overwrite starts again");
        }
        if !self.file(SETTINGS).exists() {
            return refuse("--resume found no checkpoint there; leave it out to start");
        }
        console::say(&format!(
            "{}: the run ended before its first checkpoint, so it begins again",
            self.path.display()
        ));
        Ok(())
    }

    /// Takes away an earlier run's result: with `overwrite` all of it, else what says that it is complete.
    pub(crate) fn begin(&self, overwrite: bool) -> anyhow::Result<()> {
        if overwrite {
            for (_, path) in self.checkpoints().all()? {
                remove_folder(&path)?;
            }
        }
        for path in FILES.iter().take(if overwrite { FILES.len() } else { 1 }).map(|it| self.file(it)) {
            if path.exists() {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Whether a run ended here, with everything that it writes.
    pub(crate) fn is_complete(&self) -> bool {
        self.file(SUMMARY).exists()
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

    /// What it holds beside the lock.
    fn names(&self) -> anyhow::Result<Vec<OsString>> {
        let names = fs::read_dir(&self.path).with_context(|| self.path.display().to_string())?;
        let names = names.map(|it| it.map(|it| it.file_name())).collect::<std::io::Result<Vec<_>>>()?;
        Ok(names.into_iter().filter(|it| it != LOCK).collect())
    }
}

/// Refuses to replace a whole model that no run wrote, as a base or what `merge` and `quantize` make is: nobody could bring it back.
fn refuse_model(path: &Path) -> anyhow::Result<()> {
    if [SUMMARY, SETTINGS].iter().any(|it| path.join(it).exists()) {
        return Ok(());
    }
    let config = fs::read(path.join("config.json")).unwrap_or_default();
    let is_model = serde_json::from_slice(&config)
        .is_ok_and(|it: Value| ["model_type", "architectures"].iter().any(|key| it.get(key).is_some()));
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.iter().find(|it| is_model && is_of_weights(it)) {
        None => Ok(()),
        Some(weights) => Err(user_error(format!(
            "{}: --overwrite replaces what an earlier run of finetune left, but this is a whole model (config.json, {weights}) that none wrote; name another folder with --output, or remove it by hand",
            path.display()
        ))),
    }
}

/// Whether a file holds weights of a model.
fn is_of_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth"].iter().any(|it| name.ends_with(it)) && !name.starts_with("adapter_")
}
