//! The keys that the Python stack's classes know (`tests/fixtures/known_keys.json`, made by `tests/reference/keys.py`): each is in a
//! table of Halfbyte's, so that none changes a result without a word, and one that is not is named.

use e2e::{Family, TinyModel, Work, run};
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const CLASSES: [(&str, Family); 17] = [
    ("LlamaConfig", Family::Llama),
    ("MistralConfig", Family::Mistral),
    ("Qwen2Config", Family::Qwen2),
    ("Qwen3Config", Family::Qwen3),
    ("SmolLM3Config", Family::SmolLm3),
    ("GraniteConfig", Family::Granite),
    ("Olmo2Config", Family::Olmo2),
    ("Gemma2Config", Family::Gemma2),
    ("Gemma3TextConfig", Family::Gemma3),
    ("Phi3Config", Family::Phi3),
    ("MixtralConfig", Family::Mixtral),
    ("Qwen3MoeConfig", Family::Qwen3Moe),
    ("GptOssConfig", Family::GptOss),
    ("GPTNeoXConfig", Family::GptNeoX),
    ("GPT2Config", Family::Gpt2),
    ("GPTJConfig", Family::GptJ),
    ("GPTNeoConfig", Family::GptNeo),
];

/// The keys of a class, and one that nobody knows.
fn known(class: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/known_keys.json");
    let all: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let listed = all[class].as_array().unwrap_or_else(|| panic!("{class} is in {path}"));
    let mut keys: Vec<String> = listed.iter().map(|it| it.as_str().unwrap().to_owned()).collect();
    assert!(keys.len() > 10, "{class}");
    keys.push("unheard_of".into());
    keys
}

fn read(path: &Path) -> Map<String, Value> {
    fs::read_to_string(path).map_or(Map::new(), |it| serde_json::from_str(&it).unwrap())
}

/// Adds the keys of a class to a file, as null.
fn add(path: &Path, class: &str) {
    let mut values = read(path);
    for key in known(class) {
        values.entry(key).or_insert(Value::Null);
    }
    fs::write(path, Value::Object(values).to_string()).unwrap();
}

fn set(path: &Path, key: &str, value: Value) {
    let mut values = read(path);
    values.insert(key.into(), value);
    fs::write(path, Value::Object(values).to_string()).unwrap();
}

/// Of `file` nothing but the made-up key is unknown.
fn only_the_made_up_key(stderr: &str, file: &str) {
    let told: Vec<&str> = stderr.lines().filter(|it| it.contains("unknown keys")).collect();
    assert!(told.iter().any(|it| it.ends_with(&format!("{file}: unknown keys ignored: unheard_of"))), "{stderr}");
    assert!(told.iter().all(|it| it.ends_with("ignored: unheard_of")), "{stderr}");
}

#[test]
fn every_key_of_a_model_and_its_tokenizer_is_in_a_table() {
    let work = Work::new();
    for (class, family) in CLASSES {
        let folder = work.model(&TinyModel::of(family));
        let loss = work.loss(&folder, None, "");
        add(&folder.join("config.json"), class);
        add(&folder.join("tokenizer_config.json"), "PreTrainedTokenizerFast");
        add(&folder.join("generation_config.json"), "GenerationConfig");
        let outcome = work.eval(&folder, None, "").success();
        for file in ["config.json", "tokenizer_config.json", "generation_config.json"] {
            only_the_made_up_key(&outcome.stderr, file);
        }
        assert_eq!(outcome.json()["loss"].as_f64(), Some(loss), "{class}: null is absence");
    }
}

#[test]
fn every_key_of_an_adapter_and_of_a_quantised_folder_is_in_a_table() {
    let work = Work::new();
    let (model, adapter) = (work.model(&TinyModel::llama()), work.finetune().done());
    add(&adapter.join("adapter_config.json"), "LoraConfig");
    only_the_made_up_key(&work.eval(&model, Some(&adapter), "").success().stderr, "adapter_config.json");
    let stored = quantised(&work, &model, "int8");
    let path = stored.join("config.json");
    let mut settings = read(&path)["quantization_config"].clone();
    for key in known("BitsAndBytesConfig") {
        settings.as_object_mut().unwrap().entry(key).or_insert(Value::Null);
    }
    set(&path, "quantization_config", settings.clone());
    only_the_made_up_key(&work.eval(&stored, None, "").success().stderr, "quantization_config");
    settings["llm_int8_threshold"] = json!(5.0);
    set(&path, "quantization_config", settings);
    work.eval(&stored, None, "").user_error(&["llm_int8_threshold is 5", "--quant"]);
}

fn quantised(work: &Work, model: &Path, quant: &str) -> PathBuf {
    let stored = work.path("stored");
    let args = ["quantize".into(), "--quant".into(), quant.into(), "--model".into(), model.as_os_str().to_owned()];
    run(args.into_iter().chain(["--output".into(), stored.as_os_str().to_owned()])).success();
    stored
}

#[test]
fn what_would_change_a_result_is_refused_or_named() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let config = model.join("config.json");
    set(&config, "sliding_window", json!(4));
    let told = work.eval(&model, None, "").success();
    assert!(
        told.stderr.contains("without effect in a model of type llama") && told.stderr.contains("sliding_window"),
        "{told}"
    );
    set(&config, "per_layer_config", json!({ "0": { "num_key_value_heads": 1 } }));
    work.eval(&model, None, "").user_error(&["config.json", "per_layer_config", "not supported"]);
    set(&config, "per_layer_config", json!(null));
    let generation = model.join("generation_config.json");
    let generate = |flags: &str| {
        let mut args = vec!["generate".into(), "--model".into(), model.clone().into_os_string()];
        args.extend(
            "--device cpu --max-new-tokens 1 --prompt the".split(' ').chain(flags.split_whitespace()).map(Into::into),
        );
        run(args).success()
    };
    assert!(!generate("").stderr.contains("generation_config"), "no file, no word");
    for (key, value) in
        [("do_sample", json!(true)), ("top_p", json!(0.5)), ("temperature", json!(0.25)), ("num_beams", json!(4))]
    {
        set(&generation, key, value);
    }
    let told = generate("");
    let flags = "--temperature 0.25 --top-k 50 --top-p 0.5 --repetition-penalty 1";
    assert!(told.stderr.contains(flags) && told.stderr.contains("not applied: num_beams 4"), "{told}");
    let told = generate(flags);
    assert!(!told.stderr.contains("would have") && told.stderr.contains("num_beams"), "{told}");
    assert!(!work.eval(&model, None, "").success().stderr.contains("generation_config"), "it is for generate alone");
}
