//! Model folders that are not what they should be. Each is refused with the file's name before anything is written.

use e2e::{NamedTensor, Outcome, TinyModel, Work, run};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

const WEIGHTS: &str = "model.safetensors";
const Q: &str = "model.layers.1.self_attn.q_proj.weight";

/// Fine-tunes the folder and expects a mistake that leaves no output.
#[track_caller]
fn refused(work: &Work, model: &Path, parts: &[&str]) -> Outcome {
    let outcome = work.finetune().path("--model", model).run().user_error(parts);
    assert!(!work.path("run").exists() || work.contents(&work.path("run")).is_empty(), "nothing was written");
    outcome
}

/// A folder whose tensors were changed.
fn with_tensors(work: &Work, change: impl FnOnce(&mut Vec<NamedTensor>)) -> PathBuf {
    let (model, path) = (TinyModel::llama(), work.path("changed"));
    let mut tensors = model.tensors();
    change(&mut tensors);
    model.write_with(&path, &tensors);
    path
}

/// A folder whose configuration was changed.
fn with_config(work: &Work, key: &str, value: Value) -> PathBuf {
    let path = work.path("changed");
    TinyModel::llama().write(&path);
    let mut config = TinyModel::llama().config();
    config[key] = value;
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    path
}

#[test]
fn a_missing_folder() {
    let work = Work::new();
    refused(&work, &work.path("nowhere"), &["nowhere", "is not a folder", "config.json"]);
}

#[test]
fn a_folder_without_a_configuration() {
    let work = Work::new();
    let folder = work.path("empty");
    fs::create_dir(&folder).unwrap();
    refused(&work, &folder, &["config.json", "is missing"]);
}

#[test]
fn an_adapters_folder_in_the_place_of_a_model() {
    let work = Work::new();
    let adapter = work.finetune().output(&work.path("adapter")).done();
    refused(&work, &adapter, &["this is an adapter", "--adapter", "--model"]);
}

#[test]
fn a_configuration_that_is_not_json() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel::llama().write(&folder);
    fs::write(folder.join("config.json"), "{\"hidden_size\": 32,").unwrap();
    refused(&work, &folder, &["config.json", "not JSON"]);
}

#[test]
fn an_unsupported_architecture() {
    let work = Work::new();
    let folder = with_config(&work, "architectures", serde_json::json!(["BertForMaskedLM"]));
    refused(
        &work,
        &folder,
        &["config.json", "BertForMaskedLM", "not supported", "LlamaForCausalLM", "GPTNeoForCausalLM"],
    );
}

#[test]
fn sizes_that_no_model_has() {
    let work = Work::new();
    refused(&work, &with_config(&work, "num_attention_heads", 0.into()), &["config.json", "num_attention_heads"]);
    refused(
        &work,
        &with_config(&work, "num_key_value_heads", 3.into()),
        &["config.json", "4 attention heads", "3 key and value heads"],
    );
    refused(&work, &with_config(&work, "hidden_size", (-1).into()), &["config.json", "hidden_size", "whole number"]);
    refused(&work, &with_config(&work, "vocab_size", 4_000_000_000_000u64.into()), &["config.json", "vocab_size"]);
}

#[test]
fn weights_that_are_missing() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel::llama().write(&folder);
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    refused(&work, &folder, &[WEIGHTS, "is missing"]);
    fs::write(folder.join("pytorch_model.bin"), "pickle").unwrap();
    refused(&work, &folder, &["pytorch_model.bin", "torch.save"]);
}

#[test]
fn truncated_safetensors() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel::llama().write(&folder);
    let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
    // In the last tensor, at half, within the header, within its length, and nothing at all.
    for (len, reason) in [
        (bytes.len() - 4, "is truncated"),
        (bytes.len() / 2, "is truncated"),
        (700, "not a whole safetensors file"),
        (5, "is not a safetensors file"),
        (0, "is not a safetensors file"),
    ] {
        fs::write(folder.join(WEIGHTS), &bytes[..len]).unwrap();
        refused(&work, &folder, &[WEIGHTS, reason]);
    }
}

#[test]
fn bit_flipped_safetensors() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel::llama().write(&folder);
    let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let inspect = || run(["inspect".as_ref(), "--model".as_ref(), folder.as_os_str()]);
    assert_eq!(inspect().code, Some(0), "whole, it loads");
    // All over the length and the header but for its metadata, at a stride that meets every bit of a byte.
    let tensors = bytes.iter().position(|it| *it == b'}').unwrap() + 1;
    for at in (0..8).chain((tensors..header - 8).step_by(97)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(folder.join(WEIGHTS), flipped).unwrap();
        inspect().user_error(&["changed"]);
    }
}

#[test]
fn weights_that_are_not_numbers() {
    let work = Work::new();
    for value in [f32::NAN, f32::INFINITY] {
        let folder = with_tensors(&work, |all| all.iter_mut().find(|it| it.name == Q).unwrap().values[77] = value);
        refused(&work, &folder, &[WEIGHTS, Q, "NaN or infinite"]);
    }
}

#[test]
fn a_shard_that_is_missing() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel { shards: 3, ..TinyModel::llama() }.write(&folder);
    fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    refused(&work, &folder, &["model-00002-of-00003.safetensors", "is missing", "model.safetensors.index.json"]);
}

#[test]
fn an_index_that_makes_no_sense() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel { shards: 2, ..TinyModel::llama() }.write(&folder);
    for (text, reason) in [("{", "not JSON"), ("{}", "weight_map"), ("{\"weight_map\": {}}", "no shard")] {
        fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
        refused(&work, &folder, &["model.safetensors.index.json", reason]);
    }
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let work = Work::new();
    let folder = with_tensors(&work, |all| all.iter_mut().find(|it| it.name == Q).unwrap().shape = vec![16, 64]);
    refused(&work, &folder, &[WEIGHTS, Q, "[16, 64]", "[32, 32]"]);
}

#[test]
fn a_tensor_that_is_missing() {
    let work = Work::new();
    let folder = with_tensors(&work, |all| all.retain(|it| it.name != Q));
    refused(&work, &folder, &["changed", Q]);
}

#[test]
fn a_tensor_too_many() {
    let work = Work::new();
    let folder = with_tensors(&work, |all| {
        let mut surplus = all[0].clone();
        surplus.name = "model.layers.2.self_attn.q_proj.weight".into();
        all.push(surplus);
    });
    refused(&work, &folder, &["changed", "model.layers.2.self_attn.q_proj.weight", "config.json"]);
}

#[test]
fn weights_kept_as_integers() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel::llama().write(&folder);
    let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // As many bytes, so that only the dtype tells.
    for (dtype, shape) in [("I32", [32, 32]), ("I64", [32, 16])] {
        let mut entries: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        (entries[Q]["dtype"], entries[Q]["shape"]) = (dtype.into(), serde_json::json!(shape));
        let text = Value::Object(entries).to_string().into_bytes();
        let file = [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[8 + header..]].concat();
        fs::write(folder.join(WEIGHTS), file).unwrap();
        refused(&work, &folder, &[WEIGHTS, Q, "F32, F16 or BF16"]);
    }
}

#[test]
fn a_tokenizer_with_more_words_than_the_model_has() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel::llama().write(&folder);
    fs::write(folder.join("tokenizer.json"), e2e::tokenizer_json(5)).unwrap();
    let largest = (e2e::VOCAB + 4).to_string();
    let entries = e2e::VOCAB.to_string();
    refused(&work, &folder, &["tokenizer", &largest, &entries]);
}

#[test]
fn a_tokenizer_that_is_missing_or_broken() {
    let work = Work::new();
    let folder = work.path("changed");
    TinyModel::llama().write(&folder);
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    refused(&work, &folder, &["tokenizer.json", "no such file"]);
    for text in ["{", "{}", "{\"model\": 7}", "[]"] {
        fs::write(folder.join("tokenizer.json"), text).unwrap();
        refused(&work, &folder, &["tokenizer.json", "not a usable tokenizer"]);
    }
}
