//! Which files of a repository are needed, and whether a folder has them.

use crate::cache;
use serde_json::Value;
use std::{fs, path::Path};

/// What a name is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A model: configuration, tokenizer, weights.
    Model,
    /// An adapter.
    Adapter,
    /// Either, whatever the repository holds.
    Any,
}

/// Weights, the better form first: a single file, or an index and the files that it lists.
const WEIGHTS: [[&str; 2]; 2] =
    [["model.safetensors", "model.safetensors.index.json"], ["pytorch_model.bin", "pytorch_model.bin.index.json"]];
const ADAPTER: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The paths that are needed of those that there are.
#[cfg(any(test, feature = "network"))]
pub(crate) fn wanted<'a>(all: &[&'a str], used: Use) -> Vec<&'a str> {
    let has = |path: &str| all.contains(&path);
    let weights = WEIGHTS.iter().find(|it| it.iter().any(|it| has(it))).map(|[single, index]| {
        // Of both, the single file counts for whoever loads it.
        if has(single) { (*single, None) } else { (*index, single.rsplit_once('.')) }
    });
    let adapter = ADAPTER_WEIGHTS.into_iter().find(|it| has(it));
    let of_model = |path: &str| {
        let is_weight = weights.is_some_and(|(file, parts)| {
            let is_part = |(stem, ending): (&str, &str)| {
                path.strip_prefix(stem).and_then(|it| it.strip_suffix(ending)).is_some_and(is_number_of)
            };
            path == file || parts.is_some_and(is_part)
        });
        is_weight || is_text(path)
    };
    let of_adapter = |path: &str| path == ADAPTER || path == "halfbyte_base.json" || adapter == Some(path);
    let needed = |path: &str| match used {
        Use::Model => of_model(path),
        Use::Adapter => of_adapter(path),
        Use::Any => of_model(path) || of_adapter(path),
    };
    all.iter().copied().filter(|it| needed(it)).collect()
}

/// `-00001-of-00002.`
#[cfg(any(test, feature = "network"))]
fn is_number_of(text: &str) -> bool {
    let inner = text.strip_prefix('-').and_then(|it| it.strip_suffix('.')).and_then(|it| it.split_once("-of-"));
    inner.is_some_and(|(a, b)| [a, b].iter().all(|it| !it.is_empty() && it.bytes().all(|c| c.is_ascii_digit())))
}

/// Configuration, tokenizer and templates, which lie at the top.
#[cfg(any(test, feature = "network"))]
fn is_text(path: &str) -> bool {
    if path.contains('/') {
        return path.starts_with("additional_chat_templates/") && path.ends_with(".jinja");
    }
    let begins = [
        "config",
        "generation_config",
        "tokenizer",
        "special_tokens_map",
        "added_tokens",
        "vocab",
        "merges",
        "chat_template",
    ];
    let ends = [".json", ".txt", ".jinja", ".model", ".tiktoken"];
    (begins.iter().any(|it| path.starts_with(it)) && ends.iter().any(|it| path.ends_with(it)))
        || path.ends_with(".model")
}

/// What a folder lacks to be used, if anything: it may have been filled by a program that wanted less, or be half filled.
pub(crate) fn lacking(folder: &Path, used: Use) -> Option<String> {
    let has = |path: &str| folder.join(path).exists();
    let first = |paths: &[&str]| (!paths.iter().any(|it| has(it))).then(|| paths[0].to_owned());
    let adapter = || first(&[ADAPTER]).or_else(|| first(&ADAPTER_WEIGHTS));
    let model = || {
        first(&["config.json"])
            .or_else(|| first(&["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"]))
            .or_else(|| lacking_weights(folder))
    };
    match used {
        Use::Model => model(),
        Use::Adapter => adapter(),
        Use::Any if has(ADAPTER) => adapter(),
        Use::Any => model(),
    }
}

fn lacking_weights(folder: &Path) -> Option<String> {
    let has = |path: &str| folder.join(path).exists();
    if WEIGHTS.iter().any(|it| has(it[0])) {
        return None;
    }
    let Some(index) = WEIGHTS.iter().map(|it| it[1]).find(|it| has(it)) else { return Some(WEIGHTS[0][0].to_owned()) };
    let map = fs::read(folder.join(index)).ok().and_then(|it| serde_json::from_slice::<Value>(&it).ok());
    let map = map.as_ref().and_then(|it| it.get("weight_map")?.as_object());
    map?.values().filter_map(Value::as_str).find(|it| !has(it)).map(str::to_owned)
}

/// The files of a folder, by their paths in it.
pub(crate) fn paths(folder: &Path) -> crate::Result<Vec<String>> {
    let files = cache::files(folder)?;
    let inner = |it: &std::path::PathBuf| Some(it.strip_prefix(folder).ok()?.to_str()?.replace('\\', "/"));
    Ok(files.iter().filter_map(inner).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_repository_only_what_is_needed_is_taken() {
        let all = [
            ".gitattributes",
            "README.md",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "merges.txt",
            "vocab.json",
            "tokenizer.model",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "onnx/model.onnx",
            "onnx/config.json",
            "additional_chat_templates/tool_use.jinja",
            "model.fp16.safetensors",
        ];
        let found = wanted(&all, Use::Model);
        assert_eq!(
            found,
            [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "chat_template.jinja",
                "merges.txt",
                "vocab.json",
                "tokenizer.model",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "additional_chat_templates/tool_use.jinja",
            ]
        );
    }

    #[test]
    fn pickles_are_taken_where_there_is_nothing_else() {
        let all = ["config.json", "pytorch_model.bin", "tf_model.h5"];
        assert_eq!(wanted(&all, Use::Model), ["config.json", "pytorch_model.bin"]);
        let all = ["model.safetensors", "pytorch_model.bin", "model-00001-of-00001.safetensors"];
        assert_eq!(wanted(&all, Use::Model), ["model.safetensors"]);
    }

    #[test]
    fn an_adapter_is_its_own_files() {
        let all = [
            "README.md",
            "adapter_config.json",
            "adapter_model.bin",
            "adapter_model.safetensors",
            "halfbyte_base.json",
            "tokenizer.json",
        ];
        assert_eq!(
            wanted(&all, Use::Adapter),
            ["adapter_config.json", "adapter_model.safetensors", "halfbyte_base.json"]
        );
        assert_eq!(wanted(&all, Use::Any).len(), 4);
    }

    #[test]
    fn a_folder_says_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let add = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let lacks = |used| lacking(dir.path(), used);
        assert_eq!(lacks(Use::Model).as_deref(), Some("config.json"));
        add("config.json", "{}");
        assert_eq!(lacks(Use::Model).as_deref(), Some("tokenizer.json"));
        add("tokenizer.json", "{}");
        assert_eq!(lacks(Use::Model).as_deref(), Some("model.safetensors"));
        add("model.safetensors.index.json", r#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}"#);
        add("x.safetensors", "");
        assert_eq!(lacks(Use::Model).as_deref(), Some("y.safetensors"));
        add("y.safetensors", "");
        assert_eq!(lacks(Use::Model), None);
        assert_eq!(lacks(Use::Adapter).as_deref(), Some("adapter_config.json"));
    }
}
