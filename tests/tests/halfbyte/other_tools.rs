//! Model folders as other tools leave them: each is read for what it means, or refused with what helps.

use e2e::{NamedTensor, Outcome, TinyModel, TorchTensor, Work, run, write_torch};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

const HEAD: &str = "lm_head.weight";
const WEIGHTS: &str = "model.safetensors";

fn untied() -> TinyModel {
    TinyModel { tied: false, ..TinyModel::llama() }
}

fn set(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut all: Value = fs::read_to_string(&path).map_or(json!({}), |it| serde_json::from_str(&it).unwrap());
    all[key] = value;
    fs::write(path, all.to_string()).unwrap();
}

/// A folder with tensors under other names.
fn renamed(work: &Work, model: &TinyModel, rename: impl Fn(&str) -> String) -> PathBuf {
    let (path, mut tensors) = (work.path("renamed"), model.tensors());
    tensors.iter_mut().for_each(|it| it.name = rename(&it.name));
    model.write_with(&path, &tensors);
    path
}

#[test]
fn a_head_of_its_own_counts_though_the_configuration_ties_it() {
    let work = Work::new();
    let model = work.model(&untied());
    let loss = work.loss(&model, None, "");
    set(&model, "config.json", "tie_word_embeddings", json!(true));
    let told = work.eval(&model, None, "").success();
    assert!(told.stderr.contains("ties the output head") && told.stderr.contains(HEAD), "{told}");
    assert_eq!(told.json()["loss"].as_f64(), Some(loss));
    let merged = work.path("merged");
    let adapter = work.finetune().path("--model", &model).done();
    command("merge", &model, &[("--adapter", &adapter), ("--output", &merged)], "--dtype f32").success();
    let both = work.loss(&model, Some(&adapter), "");
    assert!((work.loss(&merged, None, "") - both).abs() < 1e-4, "the merged folder says that it is not tied");
}

#[test]
fn of_a_tied_pair_either_name_is_enough_and_a_copy_changes_nothing() {
    let work = Work::new();
    let tied = TinyModel::llama();
    let model = work.model(&tied);
    let loss = work.loss(&model, None, "");
    let only_head = renamed(&work, &tied, |name| name.replace("model.embed_tokens.weight", HEAD));
    assert_eq!(work.loss(&only_head, None, ""), loss);
    let mut tensors = tied.tensors();
    let embedding = tensors.iter().find(|it| it.name == "model.embed_tokens.weight").unwrap().clone();
    tensors.push(NamedTensor { name: HEAD.into(), ..embedding });
    tied.write_with(&only_head, &tensors);
    let outcome = work.eval(&only_head, None, "").success();
    assert!(!outcome.stderr.contains("ties"), "{outcome}");
    assert_eq!(outcome.json()["loss"].as_f64(), Some(loss));
}

#[test]
fn tensors_are_found_under_the_names_that_wrappers_give_them() {
    let work = Work::new();
    let models = [untied(), TinyModel::gpt_neo()];
    for model in models {
        let loss = work.loss(&work.model(&model), None, "");
        let bare = |name: &str| {
            name.strip_prefix("model.").or_else(|| name.strip_prefix("transformer.")).unwrap_or(name).to_owned()
        };
        let renames: [&dyn Fn(&str) -> String; 3] = [&bare, &|name| format!("base_model.model.{name}"), &|name| {
            format!("module.{}", name.replace("q_proj.weight", "q_proj.base_layer.weight"))
        }];
        for rename in renames {
            let folder = renamed(&work, &model, rename);
            assert_eq!(work.loss(&folder, None, ""), loss, "{:?}", model.family);
        }
    }
}

#[test]
fn a_value_head_is_left_out_and_an_adapter_beside_its_base_refused() {
    let work = Work::new();
    let model = untied();
    let loss = work.loss(&work.model(&model), None, "");
    let with = |name: &str| {
        let (path, mut tensors) = (work.path("more"), model.tensors());
        tensors.push(NamedTensor { name: name.into(), shape: vec![1], values: vec![0.5] });
        model.write_with(&path, &tensors);
        work.eval(&path, None, "")
    };
    let told = with("v_head.summary.bias").success();
    assert!(told.stderr.contains("v_head"), "{told}");
    assert_eq!(told.json()["loss"].as_f64(), Some(loss));
    with("model.layers.0.self_attn.q_proj.lora_A.weight").user_error(&["lora_A", "merge_and_unload"]);
}

#[test]
fn double_precision_is_narrowed_and_a_stale_index_not_looked_at() {
    let work = Work::new();
    let model = work.model(&untied());
    let loss = work.loss(&model, None, "");
    fs::write(model.join("model.safetensors.index.json"), r#"{"weight_map": {"a": "gone.safetensors"}}"#).unwrap();
    let bytes = fs::read(model.join(WEIGHTS)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut entries: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    for (_, it) in entries.iter_mut().filter(|it| it.0 != "__metadata__") {
        it["dtype"] = json!("F64");
        it["data_offsets"] = [0, 1].map(|at| json!(2 * it["data_offsets"][at].as_u64().unwrap())).to_vec().into();
    }
    let text = Value::Object(entries).to_string().into_bytes();
    let wide = bytes[8 + header..].chunks_exact(4).map(|it| f64::from(f32::from_le_bytes(it.try_into().unwrap())));
    let wide: Vec<u8> = wide.flat_map(f64::to_le_bytes).collect();
    fs::write(model.join(WEIGHTS), [&(text.len() as u64).to_le_bytes()[..], &text, &wide].concat()).unwrap();
    assert_eq!(work.loss(&model, None, ""), loss);
}

#[test]
fn layers_that_a_quantised_folder_keeps_dense_stay_dense() {
    let work = Work::new();
    let (model, stored) = (work.model(&untied()), work.path("stored"));
    command("quantize", &model, &[("--output", &stored)], "").success();
    let all = work.loss(&stored, None, "");
    // The second layer's o_proj goes back to what it was, as in folders that keep some layers.
    let path = "model.layers.1.self_attn.o_proj";
    let (dense, quantised) = (file(&model), file(&stored));
    let mut mixed: Vec<_> = quantised.into_iter().filter(|it| !it.0.starts_with(path)).collect();
    mixed.extend(dense.into_iter().filter(|it| it.0.starts_with(path)));
    write(&stored, mixed);
    let again = work.eval(&stored, None, "").success();
    assert!(again.stderr.contains(path) && again.stderr.contains("quantised like the others"), "{again}");
    assert_eq!(again.json()["loss"].as_f64(), Some(all), "quantised on the way");
    let config: Value = serde_json::from_str(&fs::read_to_string(stored.join("config.json")).unwrap()).unwrap();
    let mut quantization = config["quantization_config"].clone();
    quantization["llm_int8_skip_modules"] = json!(["lm_head", path]);
    set(&stored, "config.json", "quantization_config", quantization);
    let kept = work.eval(&stored, None, "").success();
    assert!(!kept.stderr.contains("quantised like the others"), "{kept}");
    assert_ne!(kept.json()["loss"].as_f64(), Some(all));
    let shown = command("inspect", &stored, &[], "").success().stdout;
    let line = |path: &str| shown.lines().find(|it| it.starts_with(path)).unwrap_or(&shown).to_owned();
    assert!(line("model.layers.0.self_attn.q_proj").contains("nf4"), "{shown}");
}

#[test]
fn packed_codes_are_known_whatever_dtype_they_are_stored_as() {
    let work = Work::new();
    let (model, stored) = (work.model(&untied()), work.path("stored"));
    command("quantize", &model, &[("--output", &stored)], "").success();
    let loss = work.loss(&stored, None, "");
    let mut tensors = file(&stored);
    for (_, entry, bytes) in tensors.iter_mut().filter(|it| it.0.ends_with("_proj.weight")) {
        (entry["dtype"], entry["shape"]) = (json!("BF16"), json!([bytes.len() / 2, 1]));
    }
    write(&stored, tensors);
    let outcome = work.eval(&stored, None, "").success();
    assert!(!outcome.stderr.contains("stored dense"), "{outcome}");
    assert_eq!(outcome.json()["loss"].as_f64(), Some(loss));
}

type Stored = (String, Value, Vec<u8>);

/// The tensors of a folder: name, entry of the header, bytes.
fn file(folder: &Path) -> Vec<Stored> {
    let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let place = |it: &Value, at: usize| 8 + header + it["data_offsets"][at].as_u64().unwrap() as usize;
    let tensors = entries.into_iter().filter(|it| it.0 != "__metadata__");
    tensors.map(|(name, it)| (name, it.clone(), bytes[place(&it, 0)..place(&it, 1)].to_vec())).collect()
}

fn write(folder: &Path, tensors: Vec<Stored>) {
    let (mut entries, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, mut entry, bytes) in tensors {
        entry["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        data.extend(bytes);
        entries.insert(name, entry);
    }
    let text = Value::Object(entries).to_string().into_bytes();
    fs::write(folder.join(WEIGHTS), [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat()).unwrap();
}

fn command(name: &str, model: &Path, paths: &[(&str, &PathBuf)], flags: &str) -> Outcome {
    let mut args: Vec<OsString> = vec![name.into(), "--model".into(), model.into()];
    paths.iter().for_each(|(flag, path)| args.extend([(*flag).into(), path.into()]));
    args.extend(flags.split_whitespace().map(OsString::from));
    run(args)
}

#[test]
fn a_dense_folder_that_calls_itself_quantised_is_told_what_to_do() {
    let work = Work::new();
    let model = work.model(&untied());
    set(&model, "config.json", "quantization_config", json!({ "load_in_4bit": true, "quant_method": "bitsandbytes" }));
    work.eval(&model, None, "").user_error(&["every layer is dense", "remove quantization_config", "--quant nf4"]);
}

#[test]
fn every_file_of_the_tokenizer_goes_along() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let files = ["tokenizer.model", "added_tokens.json", "vocab.json", "merges.txt"];
    for name in files {
        fs::write(model.join(name), if name == "added_tokens.json" { "{}" } else { "x" }).unwrap();
    }
    let (merged, quantised) = (work.path("merged"), work.path("quantised"));
    let adapter = work.finetune().done();
    command("merge", &model, &[("--adapter", &adapter), ("--output", &merged)], "").success();
    command("quantize", &model, &[("--output", &quantised)], "").success();
    for folder in [&adapter, &merged, &quantised] {
        for name in files {
            assert!(folder.join(name).exists(), "{name} is not in {}", folder.display());
        }
    }
}

#[test]
fn a_folder_without_usable_weights_says_what_is_there() {
    let work = Work::new();
    let inspect = |name: &str, contents: &str| {
        let folder = work.path(&name.replace('.', "-"));
        TinyModel::llama().write(&folder);
        fs::remove_file(folder.join(WEIGHTS)).unwrap();
        fs::write(folder.join(name), contents).unwrap();
        command("inspect", &folder, &[], "")
    };
    inspect("pytorch_model-00001-of-00002.bin", "").user_error(&["pytorch_model.bin.index.json", "fetch that, too"]);
    inspect("pytorch_model.bin", "").user_error(&["pytorch_model.bin", "torch.save"]);
    inspect("pytorch_model.bin", "\u{80}").user_error(&["pytorch_model.bin"]);
    inspect("model-00001-of-00002.safetensors", "").user_error(&["model.safetensors.index.json", "fetch that, too"]);
    inspect("tiny.Q4_K_M.gguf", "").user_error(&["tiny.Q4_K_M.gguf", "gguf_file", "safetensors"]);
    inspect(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        .user_error(&["Git LFS", "git lfs pull"]);
}

#[test]
fn weights_that_torch_wrote_are_read_in_one_file_or_several() {
    let work = Work::new();
    let model = untied();
    let folder = work.model(&model);
    let loss = work.loss(&folder, None, "");
    let tensors: Vec<TorchTensor> = model.tensors().into_iter().map(|it| (it.name, it.shape, it.values)).collect();
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    write_torch(&folder.join("pytorch_model.bin"), &tensors);
    assert_eq!(work.loss(&folder, None, ""), loss);
    let quantised = work.path("quantised");
    command("quantize", &folder, &[("--output", &quantised)], "").success();
    fs::remove_file(folder.join("pytorch_model.bin")).unwrap();
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("pytorch_model-0000{}-of-00002.bin", i + 1);
        write_torch(&folder.join(&name), part);
        map.extend(part.iter().map(|it| (it.0.clone(), json!(name))));
    }
    fs::write(folder.join("pytorch_model.bin.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    assert_eq!(work.loss(&folder, None, ""), loss);
}

#[test]
fn a_place_beside_the_model_is_pointed_out() {
    let work = Work::new();
    let root = work.path("models--acme--tiny");
    let snapshot = root.join("snapshots").join("0123abcd");
    TinyModel::llama().write(&snapshot);
    command("inspect", &root, &[], "").user_error(&["hub's cache", "0123abcd"]);
    command("inspect", Path::new("acme/tiny"), &[], "").user_error(&["no such path", "HF_HUB_OFFLINE"]);
    fs::write(snapshot.join("config.json"), "../../blobs/blob0").unwrap();
    command("inspect", &snapshot, &[], "").user_error(&["config.json", "cp -rL"]);
    #[cfg(unix)]
    for name in ["config.json", WEIGHTS] {
        TinyModel::llama().write(&snapshot);
        fs::remove_file(snapshot.join(name)).unwrap();
        std::os::unix::fs::symlink("../../blobs/gone", snapshot.join(name)).unwrap();
        command("inspect", &snapshot, &[], "").user_error(&[name, "blobs/gone", "not complete"]);
        fs::remove_file(snapshot.join(name)).unwrap();
    }
}
