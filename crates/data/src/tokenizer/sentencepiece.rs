//! A SentencePiece model, as a `tokenizer.json`: pieces that are merged by pairs, what is no piece cut into bytes, spaces written as
//! `▁`, and one put before a text.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// A piece of the vocabulary.
struct Piece {
    text: String,
    kind: u64,
}

/// Kinds of pieces: those that steer, and those that a user added.
const CONTROL: u64 = 3;
const USER: u64 = 4;
/// The kind of model that merges pairs.
const BPE: u64 = 2;

/// The text of the `tokenizer.json`. With `prefix` a space is put before a text; in `legacy` ones, after every special token, too.
pub(super) fn json(path: &Path, prefix: bool, legacy: bool) -> Result<Value> {
    let corrupt = |reason: &str| Error::CorruptTokenizer { path: path.into(), reason: reason.into() };
    let bytes = super::read(path)?.unwrap_or_default();
    let (pieces, model) = parse(&bytes).ok_or_else(|| corrupt("it is no model of SentencePiece"))?;
    if pieces.is_empty() {
        return Err(corrupt("it is no model of SentencePiece, or has no pieces"));
    }
    if model != BPE {
        return Err(corrupt(
            "its pieces are chosen by their probabilities (unigram), which models of this kind do not use",
        ));
    }
    let vocab: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, it)| (it.text.as_str(), id)).collect();
    if vocab.len() != pieces.len() {
        return Err(corrupt("it holds a piece twice"));
    }
    let added: Vec<Value> = pieces
        .iter()
        .enumerate()
        .filter(|it| [CONTROL, USER].contains(&it.1.kind))
        .map(|(id, it)| {
            json!({
                "id": id, "content": it.text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": it.kind == CONTROL
            })
        })
        .collect();
    let scheme = match (prefix, legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let merges: Vec<Value> = merges(&pieces, &vocab).into_iter().map(|(left, right)| json!([left, right])).collect();
    let words: Map<String, Value> = pieces.iter().enumerate().map(|(id, it)| (it.text.clone(), json!(id))).collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false },
        "decoder": { "type": "Sequence", "decoders": steps },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": words, "merges": merges
        },
    }))
}

/// Every way to make a piece of two others, in the order of the pieces: a model names its pieces in the order in which they were merged.
fn merges<'a>(pieces: &'a [Piece], vocab: &HashMap<&str, usize>) -> Vec<(&'a str, &'a str)> {
    let mut all = Vec::new();
    for (id, piece) in pieces.iter().enumerate() {
        let cuts = piece.text.char_indices().skip(1).enumerate();
        for (chars, (at, _)) in cuts {
            let (left, right) = piece.text.split_at(at);
            if let (Some(a), Some(b)) = (vocab.get(left), vocab.get(right)) {
                all.push(((id, chars, *a, *b), (left, right)));
            }
        }
    }
    all.sort_by_key(|it| it.0);
    all.into_iter().map(|it| it.1).collect()
}

/// The pieces and the kind of model of a protocol buffer; `None` if it is none.
fn parse(bytes: &[u8]) -> Option<(Vec<Piece>, u64)> {
    const PIECES: u64 = 1;
    const TRAINER: u64 = 2;
    let (mut pieces, mut model) = (Vec::new(), 1);
    for field in fields(bytes)? {
        match field {
            (PIECES, Field::Bytes(piece)) => {
                let (mut text, mut kind) = (String::new(), 1);
                for part in fields(piece)? {
                    match part {
                        (1, Field::Bytes(it)) => text = std::str::from_utf8(it).ok()?.to_owned(),
                        (3, Field::Number(it)) => kind = it,
                        _ => {}
                    }
                }
                pieces.push(Piece { text, kind });
            }
            (TRAINER, Field::Bytes(trainer)) => {
                for part in fields(trainer)? {
                    if let (3, Field::Number(kind)) = part {
                        model = kind;
                    }
                }
            }
            _ => {}
        }
    }
    Some((pieces, model))
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of fixed width; none of those is asked for.
    Fixed,
}

/// The fields of a message by their numbers.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => skip(&mut bytes, 8).map(|_| Field::Fixed)?,
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                Field::Bytes(skip(&mut bytes, len)?)
            }
            5 => skip(&mut bytes, 4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        found.push((key >> 3, field));
    }
    Some(found)
}

fn skip<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

/// Seven bits a byte, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = skip(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
