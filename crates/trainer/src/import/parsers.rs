//! Settings files that are nearly right: read or refused, and nothing else.

use super::Import;
use crate::finetune::FinetuneArgs;
use halfbyte_testkit::{
    mutate,
    readers::{self, Scratch},
};
use std::path::Path;

const YAML: [&str; 3] = [
    "base_model: a/b\nload_in_4bit: true\nadapter: qlora\nlora_r: 8\nlora_target_modules:\n  - a\n  - b\ndatasets:\n  - path: rows.jsonl\n    type: alpaca\nval_set_size: 0.05\nlearning_rate: 2e-4\n",
    "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\ndataset: identity,rows\ntemplate: llama3\ncutoff_len: 2048\nnum_train_epochs: 3.0\nbf16: true\n",
    "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\nlora_r: 16\npacking: true\nlearning_rate: 1.0e-4\nreport_to: [none]\n",
];
const TOML: &str = "model = \"a/b\"\ndata = \"rows.jsonl\"\nrank = 8\nlora_alpha = 16\nlearning_rate = 1e-4\nshuffle = true\ntarget_modules = \"all-linear\"\noutput = \"run\"\n";

fn tries(what: &'static str, all: &[&str], read: impl Fn(&Path)) {
    let scratch = Scratch::new();
    readers::tries(what, 300, |dice| {
        let good = dice.one_of(all).as_bytes();
        read(&scratch.write("settings", &mutate::bytes(dice, good)));
    });
}

#[test]
fn settings_of_other_programs() {
    tries("YAML of other programs", &YAML, |path| {
        if let Ok(imported) = Import::of(path) {
            drop(imported.toml(path));
        }
    });
}

#[test]
fn settings_of_our_own() {
    tries("TOML", &[TOML], |path| {
        drop(FinetuneArgs { config: Some(path.to_owned()), ..FinetuneArgs::default() }.with_file());
    });
}
