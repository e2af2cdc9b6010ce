//! A tokenizer of a few whole words, written as the JSON that the `tokenizers` library reads.

use serde_json::{Map, Value, json};

/// Id of the end-of-text token.
pub(crate) const EOS: u32 = 0;

/// The words, in the order of their ids; those after the specials are what [`ROWS`](crate::ROWS) is made of.
const WORDS: [&str; 32] = [
    "</s>", "?", "the", "cat", "dog", "bird", "fish", "sat", "ran", "flew", "swam", "on", "over", "under", "in", "a",
    "mat", "hill", "tree", "sea", "and", "then", "slept", "all", "day", "red", "old", "big", "film", "good", "bad",
    "was",
];

/// Entries of the vocabulary.
pub const VOCAB: usize = WORDS.len();

/// The text of a `tokenizer.json` with `extra` more words than a model of [`VOCAB`] entries can take.
pub fn tokenizer_json(extra: usize) -> String {
    let surplus = (0..extra).map(|it| format!("surplus{it}"));
    let words = WORDS.iter().map(|it| (*it).to_owned()).chain(surplus);
    let vocab: Map<String, Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null,
        "added_tokens": [{"id": EOS, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
    })
    .to_string()
}
