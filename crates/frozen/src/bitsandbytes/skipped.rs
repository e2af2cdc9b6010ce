use fancy_regex::Regex;
use serde_json::Value;

/// The modules that a quantised checkpoint keeps dense: `llm_int8_skip_modules` of its `quantization_config`.
#[derive(Debug, Default)]
pub struct Skipped(Vec<(String, Option<Regex>)>);

impl Skipped {
    /// From a `quantization_config`.
    pub fn of(config: &Value) -> Skipped {
        let names = config.get("llm_int8_skip_modules").and_then(Value::as_array).into_iter().flatten();
        let one = |name: &str| (name.to_owned(), Regex::new(&format!(r"\A(?:{name})(?:(?<=\.)|(?=\.|\z))")).ok());
        Skipped(names.filter_map(Value::as_str).map(one).collect())
    }

    /// Whether the module at `path` is one of them, by transformers' rule: a name matches from the beginning up to the end of a
    /// component, as it stands or as a regular expression, or at the end.
    pub fn contains(&self, path: &str) -> bool {
        self.0.iter().any(|(name, regex)| {
            path.ends_with(name.as_str()) || regex.as_ref().is_some_and(|it| it.is_match(path).unwrap_or(false))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_match_from_the_beginning_by_components_or_at_the_end() {
        let skipped =
            |names: &[&str], path: &str| Skipped::of(&json!({ "llm_int8_skip_modules": names })).contains(path);
        let path = "model.layers.1.self_attn.o_proj";
        for name in ["o_proj", "model.layers.1", "model.layers.*.self_attn", "model.", "proj", path] {
            assert!(skipped(&[name], path), "{name}");
        }
        for name in ["self_attn", "model.layers.1.self_attn.o", "model.layers.11", "q_proj", "("] {
            assert!(!skipped(&[name], path), "{name}");
        }
        assert!(!skipped(&["model.layers.1"], "model.layers.11.mlp.up_proj"));
        assert!(!Skipped::of(&json!({ "llm_int8_skip_modules": null })).contains(path));
        assert!(!Skipped::default().contains(path));
    }
}
