//! `adapter_config.json`, as PEFT writes and reads it.

use crate::{Error, LoraConfig, Result, TargetModules, variants::initialisation};
use halfbyte_files::{
    KeyTable,
    KeyUse::{self, Irrelevant, Read, Refused},
    is_off,
};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The version of PEFT whose files these are.
const PEFT_VERSION: &str = "0.21.2";

const MERGE: &str = "merge it in PEFT (merge_and_unload, then save_pretrained) and use the merged folder as --model";
const APART: &str = "it acts on some tokens alone and cannot be merged: run it in PEFT";
const LAYERS: KeyUse = Irrelevant("it shaped how the adapter was trained; the weights that came of it count");
const WHO: KeyUse = Irrelevant("it tells where the file is from");

/// The keys of `adapter_config.json`.
pub const ADAPTER_KEYS: KeyTable = KeyTable {
    file: "adapter_config.json",
    keys: &[
        ("peft_type", Read),
        ("r", Read),
        ("lora_alpha", Read),
        ("lora_dropout", Read),
        ("target_modules", Read),
        ("target_parameters", Read),
        ("exclude_modules", Read),
        ("bias", Read),
        ("use_dora", Read),
        ("use_rslora", Read),
        ("modules_to_save", Read),
        ("rank_pattern", Read),
        ("alpha_pattern", Read),
        ("layers_to_transform", Read),
        ("layers_pattern", Read),
        ("ensure_weight_tying", Read),
        ("init_lora_weights", Read),
        ("trainable_token_indices", Read),
        ("base_model_name_or_path", Read),
        ("revision", Read),
        ("fan_in_fan_out", Irrelevant("the base knows which of its layers keep their matrix transposed, as in PEFT")),
        ("alora_invocation_tokens", Refused(APART)),
        ("arrow_config", Refused(APART)),
        ("corda_config", Refused(MERGE)),
        ("kasa_config", Refused(MERGE)),
        ("layer_replication", Refused(MERGE)),
        ("lora_bias", Refused(MERGE)),
        ("monteclora_config", Refused(MERGE)),
        ("use_bdlora", Refused(MERGE)),
        ("use_qalora", Refused(MERGE)),
        ("velora_config", Refused(MERGE)),
        ("eva_config", LAYERS),
        ("loftq_config", LAYERS),
        ("lora_ga_config", LAYERS),
        ("megatron_config", Irrelevant("there are no layers of Megatron in these models")),
        ("megatron_core", Irrelevant("there are no layers of Megatron in these models")),
        ("qalora_group_size", Irrelevant("it is for use_qalora, which is refused")),
        ("inference_mode", Irrelevant("the command says whether the adapter is trained")),
        ("runtime_config", Irrelevant("it chooses between ways to compute the same")),
        ("task_type", Irrelevant("the model is one that continues texts, whatever this says")),
        ("auto_mapping", WHO),
        ("base_model_class", WHO),
        ("peft_version", WHO),
    ],
};

/// The file's text for a trained adapter: all keys of PEFT, sorted, indented by two. `adapted` are the paths of the
/// adapted layers, which stand for `all-linear`, as PEFT writes them.
pub fn render_adapter_config(config: &LoraConfig, adapted: &[String]) -> String {
    let target = match &config.target_modules {
        TargetModules::AllLinear => sorted(adapted),
        other => target_value(other),
    };
    let patterns = |pairs: Vec<(String, Value)>| Value::Object(pairs.into_iter().collect());
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
    let null = ["alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "kasa_config"];
    let null_too = ["layer_replication", "lora_ga_config", "megatron_config", "monteclora_config"];
    let null_last = ["trainable_token_indices", "use_bdlora", "velora_config"];
    null.iter().chain(&null_too).chain(&null_last).for_each(|key| put(key, Value::Null));
    let off = ["fan_in_fan_out", "lora_bias", "use_qalora"];
    off.iter().for_each(|key| put(key, json!(false)));
    put("alpha_pattern", patterns(config.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect()));
    put("base_model_name_or_path", json!(config.base_model_name_or_path));
    put("bias", json!(config.bias));
    put("ensure_weight_tying", json!(config.ensure_weight_tying));
    put("exclude_modules", config.exclude_modules.as_ref().map_or(Value::Null, target_value));
    put("inference_mode", json!(true));
    put("init_lora_weights", config.init_lora_weights.as_ref().map_or(json!(true), |it| json!(it)));
    put("layers_pattern", json!((!config.layers_pattern.is_empty()).then_some(&config.layers_pattern)));
    put("layers_to_transform", json!(config.layers_to_transform));
    put("loftq_config", json!({}));
    put("lora_alpha", number(config.lora_alpha));
    put("lora_dropout", number(config.lora_dropout));
    put("megatron_core", json!("megatron.core"));
    let saved = (!config.modules_to_save.is_empty()).then_some(&config.modules_to_save);
    put("modules_to_save", json!(saved));
    put("peft_type", json!("LORA"));
    put("peft_version", json!(PEFT_VERSION));
    put("qalora_group_size", json!(16));
    put("r", json!(config.rank));
    put("rank_pattern", patterns(config.rank_pattern.iter().map(|(k, v)| (k.clone(), json!(v))).collect()));
    put("revision", json!(config.revision));
    put("target_modules", target);
    let parameters = (!config.target_parameters.is_empty()).then(|| sorted(&config.target_parameters));
    put("target_parameters", parameters.unwrap_or(Value::Null));
    put("task_type", json!("CAUSAL_LM"));
    put("use_dora", json!(config.use_dora));
    put("use_rslora", json!(config.use_rslora));
    keys.sort_keys();
    format!("{:#}\n", Value::Object(keys))
}

/// Rows of tables, by the names of the tables; none is the embedding.
pub type TokenRows = Vec<(Option<String>, Vec<usize>)>;

/// What an `adapter_config.json` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterConfig {
    /// The settings.
    pub lora: LoraConfig,
    /// Rows of tables that were trained (`trainable_token_indices`), by the name of the table; none is the embedding.
    pub token_rows: TokenRows,
    /// Things a user should know, such as keys that are not known (PEFT ignores those too).
    pub notes: Vec<String>,
}

/// Reads the file's text.
///
/// `path` is for messages. Only `peft_type` is mandatory; what would change the result and is not understood is an error.
pub fn parse_adapter_config(path: &Path, text: &str) -> Result<AdapterConfig> {
    let wrong = |message: String| Error::File { path: path.to_owned(), message };
    let root: Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let Value::Object(keys) = root else { return Err(wrong("expected a JSON object".into())) };
    check_type(&keys).map_err(wrong)?;
    let of_keys = ADAPTER_KEYS.check(&keys, "LORA").map_err(wrong)?;
    let init = keys.get("init_lora_weights").filter(|it| changes_base(it));
    let init = init.map(|it| it.as_str().unwrap_or_default().to_lowercase());
    if let Some(init) = init.as_ref().filter(|it| initialisation(it).is_none()) {
        let help = match init.as_str() {
            "loftq" => {
                "save the base that PEFT trained it on (get_base_model().save_pretrained), use that as --model, and write \"init_lora_weights\": true"
            }
            _ => "convert it in PEFT with save_pretrained(path_initial_model_for_weight_conversion=...) first",
        };
        return Err(wrong(format!(
            "init_lora_weights is {init}, so the adapter belongs to a base with changed weights; {help}"
        )));
    }
    let lora = LoraConfig { init_lora_weights: init, ..read_fields(&keys).map_err(wrong)? };
    lora.validate().map_err(|e| wrong(e.to_string()))?;
    Ok(AdapterConfig { lora, token_rows: token_rows(&keys).map_err(wrong)?, notes: [notes(&keys), of_keys].concat() })
}

fn check_type(keys: &Map<String, Value>) -> std::result::Result<(), String> {
    match keys.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => Ok(()),
        Some(other) if other.eq_ignore_ascii_case("lora") => Err(format!("peft_type is {other}, which PEFT does not know, either; write LORA")),
        Some(other) => {
            let prompts = ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT"];
            let help = if prompts.contains(&other) { "it adds to the input and cannot be merged: run it in PEFT" } else { MERGE };
            Err(format!("peft_type is {other}; only LORA adapters can be loaded; {help}"))
        }
        None if ["fine_tune_type", "lora_parameters"].iter().any(|it| keys.contains_key(*it)) => Err(
            "this is an adapter of MLX, which keeps other names and transposed matrices: fuse it there (mlx_lm.fuse) and use the fused folder as --model".into(),
        ),
        None => Err("peft_type is missing; is this an adapter_config.json?".into()),
    }
}

fn notes(keys: &Map<String, Value>) -> Vec<String> {
    let mut notes = Vec::new();
    if keys.get("init_lora_weights").and_then(Value::as_str).is_some_and(|it| it.eq_ignore_ascii_case("mica")) {
        notes.push("init_lora_weights is mica: the adapter is used as it is; trained further, B changes too, which mica holds fixed".to_owned());
    }
    notes
}

/// A list of rows of the embedding, or an object of such lists by the names of tables.
fn token_rows(keys: &Map<String, Value>) -> std::result::Result<TokenRows, String> {
    match keys.get("trainable_token_indices").filter(|it| !is_off(it)) {
        None => Ok(Vec::new()),
        Some(Value::Object(_)) => {
            let named: Vec<(String, Vec<usize>)> = pairs(keys, "trainable_token_indices")?;
            Ok(named.into_iter().map(|(name, rows)| (Some(name), rows)).collect())
        }
        Some(_) => Ok(vec![(None, field(keys, "trainable_token_indices")?.unwrap_or_default())]),
    }
}

/// Whether PEFT derives other base weights from this way of initialising (PiSSA, OLoRA, CorDA, LoftQ), also on loading.
fn changes_base(init: &Value) -> bool {
    const KEEP_BASE: [&str; 4] = ["gaussian", "orthogonal", "eva", "mica"];
    init.as_str().is_some_and(|it| !KEEP_BASE.contains(&it.to_lowercase().as_str()))
}

fn read_fields(keys: &Map<String, Value>) -> std::result::Result<LoraConfig, String> {
    let defaults = LoraConfig::default();
    Ok(LoraConfig {
        rank: field(keys, "r")?.unwrap_or(defaults.rank),
        lora_alpha: field(keys, "lora_alpha")?.unwrap_or(defaults.lora_alpha),
        lora_dropout: field(keys, "lora_dropout")?.unwrap_or(0.0),
        target_modules: match target(keys, "target_modules")? {
            Some(it) => it,
            // PEFT's default for both architectures of the zoo.
            None if keys.get("target_parameters").is_some_and(|it| !is_off(it)) => TargetModules::Names(Vec::new()),
            None => TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]),
        },
        target_parameters: field(keys, "target_parameters")?.unwrap_or_default(),
        // Unlike for the targets, `all-linear` is no keyword here.
        exclude_modules: match keys.get("exclude_modules") {
            Some(Value::String(regex)) if !regex.is_empty() => Some(TargetModules::Regex(regex.clone())),
            Some(Value::String(_)) => None,
            _ => field(keys, "exclude_modules")?.map(TargetModules::Names),
        },
        bias: field(keys, "bias")?.unwrap_or_default(),
        use_rslora: field(keys, "use_rslora")?.unwrap_or(false),
        use_dora: field(keys, "use_dora")?.unwrap_or(false),
        modules_to_save: field(keys, "modules_to_save")?.unwrap_or_default(),
        rank_pattern: pairs(keys, "rank_pattern")?,
        alpha_pattern: pairs(keys, "alpha_pattern")?,
        layers_to_transform: match keys.get("layers_to_transform") {
            Some(Value::Number(_)) => field(keys, "layers_to_transform")?.map(|one| vec![one]),
            _ => field(keys, "layers_to_transform")?,
        },
        layers_pattern: match keys.get("layers_pattern") {
            Some(Value::String(one)) => Some(one.clone()).filter(|it| !it.is_empty()).into_iter().collect(),
            _ => field(keys, "layers_pattern")?.unwrap_or_default(),
        },
        ensure_weight_tying: field(keys, "ensure_weight_tying")?.unwrap_or(false),
        init_lora_weights: None,
        base_model_name_or_path: field(keys, "base_model_name_or_path")?,
        revision: field(keys, "revision")?,
    })
}

fn field<T: serde::de::DeserializeOwned>(
    keys: &Map<String, Value>,
    key: &str,
) -> std::result::Result<Option<T>, String> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|e| format!("{key} is {value}: {e}")),
    }
}

fn pairs<T: serde::de::DeserializeOwned>(
    keys: &Map<String, Value>,
    key: &str,
) -> std::result::Result<Vec<(String, T)>, String> {
    let map: Map<String, Value> = field(keys, key)?.unwrap_or_default();
    let one = |(name, value): (String, Value)| {
        let parsed = T::deserialize(&value).map_err(|e| format!("{key}.{name} is {value}: {e}"))?;
        Ok((name, parsed))
    };
    map.into_iter().map(one).collect()
}

fn target(keys: &Map<String, Value>, key: &str) -> std::result::Result<Option<TargetModules>, String> {
    Ok(match keys.get(key) {
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Some(TargetModules::AllLinear),
        Some(Value::String(regex)) => Some(TargetModules::Regex(regex.clone())),
        _ => field(keys, key)?.map(TargetModules::Names),
    })
}

fn target_value(target: &TargetModules) -> Value {
    match target {
        TargetModules::Names(names) => sorted(names),
        TargetModules::Regex(regex) => json!(regex),
        TargetModules::AllLinear => json!("all-linear"),
    }
}

fn sorted(names: &[String]) -> Value {
    let mut names = names.to_vec();
    names.sort();
    json!(names)
}

/// Whole numbers are written without a fraction, as Python users type them; 0.1f32 as 0.1.
fn number(value: f32) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        return json!(value as i64);
    }
    value.to_string().parse::<f64>().map_or(Value::Null, |it| json!(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AdapterConfig> {
        parse_adapter_config(Path::new("adapter_config.json"), text)
    }

    #[test]
    fn what_is_written_is_read_back_and_every_key_is_known() {
        let config = LoraConfig {
            rank: 4,
            lora_alpha: 0.1,
            lora_dropout: 0.05,
            target_modules: TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]),
            use_rslora: true,
            use_dora: true,
            modules_to_save: vec!["lm_head".into()],
            rank_pattern: vec![("q_proj".into(), 2)],
            layers_to_transform: Some(vec![0, 2]),
            layers_pattern: vec!["layers".into()],
            ensure_weight_tying: true,
            exclude_modules: Some(TargetModules::Regex("all-linear".into())),
            ..LoraConfig::default()
        };
        let text = render_adapter_config(&config, &[]);
        assert_eq!(read(&text).unwrap(), AdapterConfig { lora: config, ..AdapterConfig::default() });
        let keys: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(keys.as_object().unwrap().len(), 41, "PEFT 0.21.2 writes 41 keys");
        // PEFT takes a dictionary or null here, and refuses false.
        assert_eq!(keys["use_bdlora"], Value::Null);
    }

    #[test]
    fn all_linear_is_written_as_the_paths_it_meant() {
        let text = render_adapter_config(&LoraConfig::default(), &["b.q".into(), "a.q".into()]);
        let keys: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(keys["target_modules"], json!(["a.q", "b.q"]));
    }

    #[test]
    fn four_keys_are_enough_and_unknown_ones_are_reported() {
        let read =
            read(r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q"], "new": 1}"#).unwrap();
        assert_eq!((read.lora.rank, read.lora.lora_alpha), (3, 6.0));
        assert_eq!(read.notes, ["adapter_config.json: unknown keys ignored: new"]);
    }

    #[test]
    fn ways_to_initialise_that_leave_the_base_alone_are_read() {
        for init in ["true", "false", "\"gaussian\"", "\"orthogonal\"", "\"eva\"", "\"mica\""] {
            read(&format!(r#"{{"peft_type": "LORA", "init_lora_weights": {init}}}"#)).unwrap();
        }
    }

    #[test]
    fn fan_in_fan_out_is_for_the_base_to_say_and_token_rows_are_read() {
        let with = |more: &str| read(&format!(r#"{{"peft_type": "LORA", {more}}}"#)).unwrap();
        assert!(with(r#""fan_in_fan_out": true"#).notes.is_empty());
        assert!(with(r#""fan_in_fan_out": false, "trainable_token_indices": null"#).notes.is_empty());
        assert_eq!(with(r#""trainable_token_indices": [3, 1]"#).token_rows, [(None, vec![3, 1])]);
        let named = with(r#""trainable_token_indices": {"embed_tokens": [2]}"#).token_rows;
        assert_eq!(named, [(Some("embed_tokens".to_owned()), vec![2])]);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (text, part) in [
            (r#"{"peft_type": "LORA", "lora_bias": true}"#, "merge_and_unload"),
            (r#"{"peft_type": "LORA", "alora_invocation_tokens": [1]}"#, "run it in PEFT"),
            (r#"{"peft_type": "LORA", "init_lora_weights": "loftq"}"#, "get_base_model"),
            (r#"{"peft_type": "LORA", "init_lora_weights": "corda"}"#, "path_initial_model_for_weight_conversion"),
            (r#"{"peft_type": "IA3"}"#, "merge_and_unload"),
            (r#"{"peft_type": "PREFIX_TUNING"}"#, "cannot be merged"),
            (r#"{"peft_type": "lora"}"#, "write LORA"),
            (r#"{"fine_tune_type": "lora", "lora_parameters": {}}"#, "MLX"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_would_change_the_result_is_refused() {
        for text in [
            r#"{"peft_type": "LORA", "use_qalora": true}"#,
            r#"{"peft_type": "IA3"}"#,
            r#"{"peft_type": "LORA", "init_lora_weights": "pissa_niter_x"}"#,
            r#"{"peft_type": "LORA", "init_lora_weights": "pissa", "use_dora": true}"#,
            r#"{"peft_type": "LORA", "init_lora_weights": "olora"}"#,
            r#"{"r": 8}"#,
            r#"{"peft_type": "LORA", "r": 0}"#,
            r#"{"peft_type": "LORA", "r": 1000000000000000000}"#,
            r#"{"peft_type": "LORA", "layers_to_transform": 1.5}"#,
            r#"{"peft_type": "LORA", "layers_to_transform": -1}"#,
            "[]",
            "{",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
