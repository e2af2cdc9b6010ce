//! What continuations hang on beside their prompts: every line of a file says it, so that a later command does not go on with others.

use crate::{base_record::BaseRecord, fingerprint::Fingerprint};
use halfbyte_models::{GenerateConfig, ModelFolder};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Of texts that a model, kept like this, continues.
pub(super) fn settings(
    folder: &ModelFolder,
    kept: BaseRecord,
    config: &GenerateConfig,
) -> anyhow::Result<Map<String, Value>> {
    let dir = folder.dir().canonicalize().ok();
    let name = dir.as_deref().and_then(Path::file_name).unwrap_or_default();
    let Value::Object(all) = json!({
        "model": name.to_string_lossy(),
        "weights": Fingerprint::of_base(folder)?,
        "base": kept.to_string(),
        "compute_dtype": config.compute.to_string(),
        "max_new_tokens": config.max_new_tokens,
        "temperature": shortest(config.temperature),
        "top_k": config.top_k,
        "top_p": shortest(config.top_p),
        "repetition_penalty": shortest(config.repetition_penalty),
        "seed": config.seed,
    }) else {
        unreachable!("these are keys and values")
    };
    Ok(all)
}

/// As it was typed: 0.7, and not 0.699999988.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// The first setting in which a line that is there is unlike what is wanted, and both of its values.
pub(super) fn difference<'a>(
    there: &'a Map<String, Value>,
    wanted: &'a Map<String, Value>,
) -> Option<(&'a str, &'a Value, &'a Value)> {
    let of = |all: &'a Map<String, Value>, key: &str| all.get(key).unwrap_or(&Value::Null);
    let mut keys = wanted.keys().chain(there.keys());
    keys.find_map(|key| (of(there, key) != of(wanted, key)).then(|| (key.as_str(), of(there, key), of(wanted, key))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_as_it_was_typed_and_the_first_difference_is_found() {
        assert_eq!(json!(shortest(0.7)).to_string(), "0.7");
        let settings = |it: Value| it.as_object().unwrap().clone();
        let (there, wanted) = (settings(json!({ "a": 1, "b": 0.7 })), settings(json!({ "a": 1, "b": 0.0, "c": 1 })));
        assert_eq!(difference(&there, &wanted), Some(("b", &json!(0.7), &json!(0.0))));
        assert_eq!(difference(&wanted, &wanted), None);
        assert_eq!(difference(&settings(json!({})), &there), Some(("a", &Value::Null, &json!(1))));
        assert_eq!(difference(&there, &settings(json!({ "a": 1 }))), Some(("b", &json!(0.7), &Value::Null)));
    }
}
