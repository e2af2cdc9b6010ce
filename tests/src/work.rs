use crate::{Finetune, Outcome, ROWS, TinyModel, run, write_jsonl};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A folder of a test's own, gone at its end.
#[derive(Debug)]
pub struct Work {
    folder: TempDir,
}

impl Default for Work {
    fn default() -> Self {
        Work::new()
    }
}

impl Work {
    /// An empty folder.
    pub fn new() -> Work {
        Work { folder: TempDir::with_prefix("halfbyte e2e ").expect("a temporary folder") }
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a model folder and gives its path, which is another one for every other model.
    pub fn model(&self, model: &TinyModel) -> PathBuf {
        let TinyModel { family, tied, attention_bias, shards, bf16, layers, seed } = model;
        let path = self.path(&format!("{family:?}-{tied}-{attention_bias}-{shards}-{bf16}-{layers}-{seed}"));
        model.write(&path);
        path
    }

    /// Writes [`ROWS`] as JSON Lines and gives the path.
    pub fn rows(&self) -> PathBuf {
        let path = self.path("rows.jsonl");
        write_jsonl(&path, &ROWS.map(Some));
        path
    }

    /// A fine-tuning of a tiny LLaMA on [`ROWS`] into the folder `run`, to be changed and run.
    pub fn finetune(&self) -> Finetune {
        Finetune::new(&self.model(&TinyModel::llama()), &self.rows(), &self.path("run"))
    }

    /// The loss that `halfbyte eval --json` measures in f32 on [`ROWS`].
    pub fn loss(&self, model: &Path, adapter: Option<&Path>, flags: &str) -> f64 {
        self.eval(model, adapter, flags).json()["loss"].as_f64().expect("a loss")
    }

    /// `halfbyte eval --json` in f32 on [`ROWS`].
    pub fn eval(&self, model: &Path, adapter: Option<&Path>, flags: &str) -> Outcome {
        let mut args: Vec<OsString> =
            ["eval", "--json", "--compute-dtype", "f32", "--model"].map(OsString::from).to_vec();
        args.extend([model.into(), "--data".into(), self.rows().into()]);
        if let Some(dir) = adapter {
            args.extend(["--adapter".into(), dir.into()]);
        }
        args.extend(flags.split_whitespace().map(OsString::from));
        run(args)
    }

    /// Every file in a folder and below, by its path in there, with its contents.
    pub fn contents(&self, folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut open = vec![folder.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path.strip_prefix(folder).expect("it lies inside").to_owned();
                    found.push((name, fs::read(&path).expect("a file")));
                }
            }
        }
        found.sort();
        found
    }
}

/// A JSON file.
pub(crate) fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
