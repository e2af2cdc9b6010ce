//! Configurations that nobody wrote: keys that the Python stack knows, left out or with values of any kind, in every file beside the
//! weights. Whatever they say, a command ends with an exit code of its own and one sentence; `cargo xtask folders` asks
//! transformers what the right answer is.

use e2e::{Family, Outcome, TinyModel, Work};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

/// A file and the classes whose keys it may hold.
const FILES: [(&str, &[&str]); 5] = [
    (
        "config.json",
        &[
            "LlamaConfig",
            "MistralConfig",
            "Qwen2Config",
            "Qwen3Config",
            "SmolLM3Config",
            "GraniteConfig",
            "Olmo2Config",
            "Gemma2Config",
            "Gemma3TextConfig",
            "Phi3Config",
            "MixtralConfig",
            "Qwen3MoeConfig",
            "GptOssConfig",
            "GPTNeoXConfig",
            "GPT2Config",
            "GPTJConfig",
            "GPTNeoConfig",
        ],
    ),
    ("tokenizer_config.json", &["PreTrainedTokenizerFast"]),
    ("special_tokens_map.json", &["PreTrainedTokenizerFast"]),
    ("generation_config.json", &["GenerationConfig"]),
    ("adapter/adapter_config.json", &["LoraConfig"]),
];

/// Keys of older versions, which the classes do not list any more.
const OLDER: [&str; 8] = [
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "torch_dtype",
    "quantization_config",
    "num_labels",
    "made_up",
];

static KNOWN: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/known_keys.json");
    let all: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let lists = all.as_object().unwrap().iter().filter(|it| it.1.is_array());
    lists.map(|(name, it)| (name.clone(), serde_json::from_value(it.clone()).unwrap())).collect()
});

/// Values of every kind, those that some key takes among them.
fn value() -> impl Strategy<Value = Value> {
    let plain = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0), Just(1), Just(2), Just(3), Just(-1), Just(64), Just(i64::MAX)].prop_map(Value::from),
        prop_oneof![Just(0.5), Just(1.0), Just(-2.0), Just(1e-6), Just(1e300)].prop_map(Value::from),
        prop_oneof![
            Just(""),
            Just("silu"),
            Just("</s>"),
            Just("the"),
            Just("q_proj"),
            Just("all-linear"),
            Just("("),
            Just("linear"),
            Just("all"),
            Just("left"),
            Just("full_attention"),
        ]
        .prop_map(Value::from),
    ];
    let names = prop_oneof![
        Just("rope_type"),
        Just("type"),
        Just("factor"),
        Just("content"),
        Just("5"),
        Just("load_in_4bit"),
        Just("q_proj"),
        Just("rope_theta"),
    ];
    plain.prop_recursive(3, 12, 4, move |inner| {
        let pairs = proptest::collection::vec((names.clone().prop_map(str::to_owned), inner.clone()), 0..4);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            pairs.prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

/// A change: the number of a file, of a key, and the value; none leaves the key out.
type Change = (usize, usize, Option<Value>);

fn change() -> impl Strategy<Value = Change> {
    (0..FILES.len(), any::<prop::sample::Index>(), proptest::option::weighted(0.85, value()))
        .prop_map(|(file, key, value)| (file, key.index(usize::MAX), value))
}

/// The key of a number, among those of a file's classes and those of older versions.
fn key(file: usize, number: usize) -> &'static str {
    let all: Vec<&'static str> =
        FILES[file].1.iter().flat_map(|it| &KNOWN[*it]).map(String::as_str).chain(OLDER).collect();
    all[number % all.len()]
}

fn apply(folder: &Path, changes: &[Change]) {
    for (file, number, value) in changes {
        let path = folder.join(FILES[*file].0);
        let mut values: Map<String, Value> =
            fs::read_to_string(&path).map_or(Map::new(), |it| serde_json::from_str(&it).unwrap());
        match value {
            Some(value) => drop(values.insert(key(*file, *number).into(), value.clone())),
            None => drop(values.remove(key(*file, *number))),
        }
        fs::write(path, Value::Object(values).to_string()).unwrap();
    }
}

/// A model folder with an adapter in it.
fn folder(work: &Work, family: Family) -> std::path::PathBuf {
    let model = work.model(&TinyModel::of(family));
    let adapter = model.join("adapter");
    fs::create_dir(&adapter).unwrap();
    let target = match family {
        Family::Phi3 => "qkv_proj",
        Family::GptNeoX => "query_key_value",
        Family::Gpt2 => "attn.c_proj",
        _ => "q_proj",
    };
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [target] });
    fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    for (path, [out, inner]) in TinyModel::of(family).linears().into_iter().filter(|it| it.0.ends_with(target)) {
        let name = |part: &str| format!("base_model.model.{path}.lora_{part}.weight");
        tensors.push((name("A"), vec![2, inner], vec![0.01; 2 * inner]));
        tensors.push((name("B"), vec![out, 2], vec![0.02; 2 * out]));
    }
    e2e::write_torch(&adapter.join("adapter_model.bin"), &tensors);
    model
}

/// A number of its own, and one sentence where it did not work.
fn ended_well(outcome: &Outcome) -> Result<(), TestCaseError> {
    let errors = outcome.stderr.lines().filter(|it| it.starts_with("error: ")).count();
    match outcome.code {
        Some(0) => prop_assert_eq!(errors, 0, "{}", outcome),
        Some(1 | 2) => prop_assert_eq!(errors, 1, "{}", outcome),
        _ => prop_assert!(false, "no exit code of its own: {}", outcome),
    }
    Ok(())
}

#[test]
fn the_folder_that_is_changed_works() {
    for family in Family::ALL {
        let work = Work::new();
        let model = folder(&work, family);
        work.eval(&model, Some(&model.join("adapter")), "").success();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_configuration_ends_with_an_exit_code_and_one_sentence(
        family in prop::sample::select(&Family::ALL[..]),
        changes in proptest::collection::vec(change(), 1..4),
        tuned in any::<bool>(),
    ) {
        let work = Work::new();
        let model = folder(&work, family);
        apply(&model, &changes);
        let adapter = model.join("adapter");
        let flags = "--per-device-eval-batch-size 2 --max-length 16";
        ended_well(&work.eval(&model, tuned.then_some(&adapter), flags))?;
    }
}
