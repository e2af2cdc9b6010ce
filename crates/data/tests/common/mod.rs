//! What several test files share: a byte-level tokenizer built in code, and data files.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use halfbyte_data::{Columns, DataConfig, SpecialTokens, Tokenizer};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

pub(crate) const BOS: u32 = 0;
pub(crate) const EOS: u32 = 1;
pub(crate) const PAD: u32 = 2;

/// Three special tokens, the 256 bytes in GPT-2's spelling, and a few merges.
pub(crate) fn tokenizer_json() -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "o"), ("g", "oo"), ("goo", "d"), ("Ġ", "good")];
    let mut vocab = serde_json::Map::new();
    let mut names = vec!["<s>".to_owned(), "</s>".into(), "<pad>".into()];
    names.extend(alphabet.iter().map(char::to_string));
    names.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    for (id, name) in names.into_iter().enumerate() {
        vocab.insert(name, id.into());
    }
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(BOS, "<s>"), added(EOS, "</s>"), added(PAD, "<pad>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>()},
    })
}

/// A post-processor that puts `<s>` before and `</s>` after each text.
pub(crate) fn surrounding() -> Value {
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [special("<s>"), sequence("A"), special("</s>")],
        "pair": [special("<s>"), sequence("A"), sequence("B"), special("</s>")],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]},
                           "</s>": {"id": "</s>", "ids": [EOS], "tokens": ["</s>"]}},
    })
}

pub(crate) fn special() -> SpecialTokens {
    SpecialTokens { bos: Some(BOS), eos: Some(EOS), pad: Some(PAD), stop: vec![EOS], ..SpecialTokens::default() }
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(tokenizer_json().to_string().as_bytes(), special()).unwrap()
}

pub(crate) fn config(max_length: usize) -> DataConfig {
    DataConfig { max_length, ..DataConfig::default() }
}

pub(crate) fn instruction_config(max_length: usize) -> DataConfig {
    DataConfig { max_length, columns: Columns::instruction(), ..DataConfig::default() }
}

/// Writes string columns, and an integer column that nobody asks for, in row groups of the given size.
pub(crate) fn write_parquet(path: &Path, columns: &[(&str, &[Option<String>])], group_rows: usize) {
    let rows = columns[0].1.len();
    let mut arrays: Vec<(&str, ArrayRef)> = vec![("label", Arc::new(Int64Array::from_iter_values(0..rows as i64)))];
    for (name, values) in columns {
        arrays.push((name, Arc::new(StringArray::from_iter(values.iter()))));
    }
    write_arrays(path, arrays, group_rows);
}

pub(crate) fn write_arrays(path: &Path, arrays: Vec<(&str, ArrayRef)>, group_rows: usize) {
    write_compressed(path, arrays, group_rows, Compression::SNAPPY);
}

pub(crate) fn write_compressed(path: &Path, arrays: Vec<(&str, ArrayRef)>, group_rows: usize, how: Compression) {
    let batch = RecordBatch::try_from_iter_with_nullable(arrays.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).set_compression(how).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A file of one column, a piece after the other.
pub(crate) fn write_arrow(path: &Path, name: &str, pieces: &[ArrayRef]) {
    let batch = |it: &ArrayRef| RecordBatch::try_from_iter_with_nullable([(name, it.clone(), true)]).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = arrow_ipc::writer::FileWriter::try_new(file, &batch(&pieces[0]).schema()).unwrap();
    pieces.iter().for_each(|it| writer.write(&batch(it)).unwrap());
    writer.finish().unwrap();
}

pub(crate) fn write_jsonl(path: &Path, columns: &[(&str, &[Option<String>])]) {
    let mut text = String::new();
    for row in 0..columns[0].1.len() {
        let object: serde_json::Map<_, _> =
            columns.iter().map(|(name, values)| ((*name).to_owned(), json!(values[row]))).collect();
        text.push_str(&Value::Object(object).to_string());
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
}

/// Rows of differing length, some null, some empty.
pub(crate) fn texts(count: usize) -> Vec<Option<String>> {
    (0..count)
        .map(|row| match row % 11 {
            3 => None,
            7 => Some(String::new()),
            9 => Some(" \n".into()),
            _ => Some(format!("row {row} says the {} good things é 🙂", "very ".repeat(row % 5))),
        })
        .collect()
}

pub(crate) fn file(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}
