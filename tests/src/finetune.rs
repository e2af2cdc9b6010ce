use crate::{Outcome, halfbyte, run_within, work::read_json};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A `halfbyte finetune` whose flags a test changes before it runs.
#[derive(Clone, Debug)]
pub struct Finetune {
    output: PathBuf,
    flags: Vec<(String, Option<OsString>)>,
}

impl Finetune {
    /// Four steps of QLoRA on all linear layers, computed in f32.
    pub fn new(model: &Path, data: &Path, output: &Path) -> Finetune {
        Finetune { output: output.to_owned(), flags: Vec::new() }
            .path("--model", model)
            .path("--data", data)
            .path("--output", output)
            .flags("--method qlora --quant nf4 --rank 4 --lora-alpha 8 --target-modules all-linear --max-length 16")
            .flags("--per-device-train-batch-size 2 --max-steps 4 --learning-rate 1e-2 --lr-scheduler-type constant")
            .flags("--compute-dtype f32 --seed 42")
    }

    /// Sets flags, written as on a command line: `--rank 8 --no-shuffle`. A flag that is there already is replaced.
    pub fn flags(mut self, text: &str) -> Finetune {
        let mut words = text.split_whitespace().peekable();
        while let Some(flag) = words.next() {
            let value = words.next_if(|it| !it.starts_with("--")).map(OsString::from);
            self = self.set(flag, value);
        }
        self
    }

    /// Sets a flag whose value may hold spaces.
    pub fn path(self, flag: &str, value: impl AsRef<Path>) -> Finetune {
        self.set(flag, Some(value.as_ref().into()))
    }

    /// Sets the output folder.
    pub fn output(mut self, path: &Path) -> Finetune {
        self.output = path.to_owned();
        self.path("--output", path)
    }

    /// The output folder.
    pub fn folder(&self) -> &Path {
        &self.output
    }

    /// Takes flags away.
    pub fn without(mut self, names: &[&str]) -> Finetune {
        self.flags.retain(|it| !names.contains(&it.0.as_str()));
        self
    }

    fn set(mut self, flag: &str, value: Option<OsString>) -> Finetune {
        assert!(flag.starts_with("--"), "{flag} is not a flag");
        self.flags.retain(|it| it.0 != flag);
        self.flags.push((flag.to_owned(), value));
        self
    }

    /// The arguments after `halfbyte`.
    pub fn args(&self) -> Vec<OsString> {
        let mut args = vec!["finetune".into()];
        for (flag, value) in &self.flags {
            args.push(flag.into());
            args.extend(value.clone());
        }
        args
    }

    /// The flags with values, as keys and values of `--config`.
    pub fn keys(&self) -> Vec<(String, String)> {
        let key = |flag: &str| flag.trim_start_matches('-').replace('-', "_");
        let value = |it: &OsString| it.to_str().expect("these values are text").to_owned();
        self.flags.iter().filter_map(|(flag, it)| Some((key(flag), value(it.as_ref()?)))).collect()
    }

    /// The command.
    pub fn command(&self) -> Command {
        let mut command = halfbyte();
        command.args(self.args());
        command
    }

    /// Runs to the end.
    pub fn run(&self) -> Outcome {
        Outcome::of(&mut self.command())
    }

    /// Runs to the end with a limit on the address space.
    pub fn within(&self, kib: usize) -> Outcome {
        run_within(kib, self.args())
    }

    /// Runs to the end, expects success, and gives the output folder.
    #[track_caller]
    pub fn done(&self) -> PathBuf {
        self.run().success();
        self.output.clone()
    }

    /// The bytes of the finished adapter.
    #[track_caller]
    pub fn adapter_bytes(&self) -> Vec<u8> {
        fs::read(self.output.join("adapter_model.safetensors")).expect("a finished run has an adapter")
    }

    /// The lines of `metrics.jsonl`.
    #[track_caller]
    pub fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.output.join("metrics.jsonl")).expect("a run has metrics");
        text.lines().map(|it| serde_json::from_str(it).expect("each line is an object")).collect()
    }

    /// The losses of `metrics.jsonl`.
    #[track_caller]
    pub fn losses(&self) -> Vec<f64> {
        self.metrics().iter().map(|it| it["loss"].as_f64().expect("a loss")).collect()
    }

    /// `summary.json`.
    #[track_caller]
    pub fn summary(&self) -> Value {
        read_json(&self.output.join("summary.json"))
    }
}
