//! Folders of the time before `tokenizer.json`: it is made of what they hold, by the rules by which transformers 5 makes it.
//!
//! `vocab.json` and `merges.txt` are of the kind of GPT-2 or of Qwen2, which cut texts differently before they merge; a
//! `tokenizer.model` is SentencePiece's, as LLaMA and Mistral use it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::sentencepiece;
use super::special::Settings;
use crate::error::{Error, Result};

/// How Qwen2 cuts a text into words.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const END_OF_TEXT: &str = "<|endoftext|>";

/// The kinds of tokenizers that are made of older files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gpt2,
    Qwen2,
    SentencePiece,
}

/// The text of the `tokenizer.json` that a folder without one would have; `None` if it holds nothing to make it of. What the kind names
/// without being told goes into `config`.
pub(super) fn json(folder: &Path, config: &mut Settings) -> Result<Option<Vec<u8>>> {
    let Some(kind) = kind(folder, config)? else { return Ok(None) };
    let defaults = match kind {
        Kind::Gpt2 => [("unk_token", END_OF_TEXT), ("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT)],
        Kind::Qwen2 => [("unk_token", END_OF_TEXT), ("pad_token", END_OF_TEXT), ("eos_token", END_OF_TEXT)],
        Kind::SentencePiece => [("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
    };
    for (key, token) in defaults {
        config.values.entry(key).or_insert_with(|| token.into());
    }
    let prefix = config.flag("add_prefix_space")?;
    let mut root = match kind {
        Kind::SentencePiece => {
            let legacy = config.flag("legacy")?.unwrap_or(false);
            sentencepiece::json(&folder.join("tokenizer.model"), prefix.unwrap_or(true), legacy)?
        }
        Kind::Gpt2 | Kind::Qwen2 => of_bytes(kind, vocabulary(folder)?, merges(folder)?, prefix.unwrap_or(false)),
    };
    root["post_processor"] = around(config, &root)?;
    Ok(Some(root.to_string().into_bytes()))
}

fn kind(folder: &Path, config: &Settings) -> Result<Option<Kind>> {
    let has = |name: &str| folder.join(name).exists();
    let (words, pieces) = (has("vocab.json") && has("merges.txt"), has("tokenizer.model"));
    if !words && !pieces {
        return Ok(None);
    }
    let model = Settings::read(folder.join("config.json"))?;
    let text = |settings: &Settings, key: &str| settings.get(key).and_then(Value::as_str).map(str::to_owned);
    let class = text(config, "tokenizer_class").or_else(|| text(&model, "model_type")).unwrap_or_default();
    match (class.trim_end_matches("Fast"), words, pieces) {
        ("GPT2Tokenizer" | "gpt_neo" | "gptj", true, _) => Ok(Some(Kind::Gpt2)),
        ("Qwen2Tokenizer" | "qwen2" | "qwen3", true, _) => Ok(Some(Kind::Qwen2)),
        ("LlamaTokenizer" | "llama" | "mistral", _, true) => Ok(Some(Kind::SentencePiece)),
        _ => {
            let files = if words { "vocab.json and merges.txt" } else { "tokenizer.model" };
            let reason = format!(
                "it is missing, and how {files} beside it cut a text is not known for {class:?} (tokenizer_class, model_type); save it with transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            );
            Err(Error::CorruptTokenizer { path: folder.join("tokenizer.json"), reason })
        }
    }
}

/// Texts as bytes, each written as a character, and merged by pairs.
fn of_bytes(kind: Kind, vocab: Map<String, Value>, merges: Vec<Value>, prefix: bool) -> Value {
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex });
    let (normalizer, cut) = match kind {
        Kind::Qwen2 => {
            let words = json!({ "type": "Split", "pattern": { "Regex": QWEN2_WORDS }, "behavior": "Isolated", "invert": false });
            (json!({ "type": "NFC" }), json!({ "type": "Sequence", "pretokenizers": [words, bytes(false)] }))
        }
        _ => (Value::Null, bytes(true)),
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": cut,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges
        },
    })
}

fn vocabulary(folder: &Path) -> Result<Map<String, Value>> {
    Ok(Settings::read(folder.join("vocab.json"))?.values)
}

/// A pair a line, after a first line that names the version.
fn merges(folder: &Path) -> Result<Vec<Value>> {
    let path = folder.join("merges.txt");
    let corrupt = |reason: String| Error::CorruptTokenizer { path: path.clone(), reason };
    let bytes = super::read(&path)?.unwrap_or_default();
    let text = std::str::from_utf8(&bytes).map_err(|error| corrupt(error.to_string()))?;
    let lines = text.lines().enumerate().filter(|it| !it.1.starts_with("#version"));
    let pair = |(number, line): (usize, &str)| match line.split(' ').collect::<Vec<_>>()[..] {
        [left, right] => Ok(json!([left, right])),
        _ => Err(corrupt(format!("line {} is {line:?} where two pieces are expected", number + 1))),
    };
    lines.map(pair).collect()
}

/// What is put around a text: the tokens that `add_bos_token` and `add_eos_token` ask for, which count where no tokenizer.json says
/// otherwise.
fn around(config: &Settings, root: &Value) -> Result<Value> {
    let mut parts = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut tokens = Map::new();
    for (role, first) in [("bos", true), ("eos", false)] {
        let wanted = config.flag(&format!("add_{role}_token"))?.unwrap_or(false);
        let Some(token) = config.token(&format!("{role}_token"))?.filter(|_| wanted) else { continue };
        let Some(id) = root["model"]["vocab"].get(&token) else { continue };
        let part = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        parts.insert(if first { 0 } else { parts.len() }, part);
        tokens.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    }
    if tokens.is_empty() {
        return Ok(Value::Null);
    }
    Ok(json!({ "type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": tokens }))
}
