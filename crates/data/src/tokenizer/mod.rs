//! The tokenizer of a model folder, as `transformers` would apply it.
//!
//! `tokenizer.json` alone does not say everything: tokens that were added later stand in `tokenizer_config.json` or
//! `added_tokens.json`, the tokens that stop generation in `generation_config.json`, and truncation or padding stored in
//! the file must not touch training data. Here that is resolved once, at loading.

mod added;
mod generation;
mod known;
mod older;
mod sentencepiece;
mod special;
mod stream;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use tokenizers::{AddedToken, Encoding, PostProcessor, Token};

use crate::error::{Error, Result};
use crate::guard::guarded;

use special::Settings;

pub use generation::Continuation;
pub use known::{GENERATION_CONFIG_KEYS, KeyUse, Neutral, TOKENIZER_CONFIG_KEYS};
pub use special::SpecialTokens;
pub use stream::TextStream;

/// Files of a model folder that belong to the tokenizer; those that exist are copied beside an adapter.
pub const TOKENIZER_FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// A tokenizer with its special tokens. Encoding gives the same ids on any number of threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// The texts of the special tokens by their keys (`bos_token`), as chat templates ask for them.
    token_texts: Vec<(String, String)>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    largest_id: u32,
    /// Bytes of the longest token, as it stands in the vocabulary.
    longest_token: usize,
    /// The first id that the model has no embedding for, once that was checked.
    limit: u32,
    notes: Vec<String>,
    continuation: Continuation,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder (without it, `vocab.json` with `merges.txt`, or `tokenizer.model`), and beside it,
    /// where they exist, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `config.json`.
    ///
    /// # Errors
    /// A `tokenizer.json` that is missing, and any of these files that cannot be understood.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let config = Settings::read(folder.join("tokenizer_config.json"))?;
        let map = Settings::read(folder.join("special_tokens_map.json"))?;
        let generation = Settings::read(folder.join("generation_config.json"))?;
        let notes = known::notes([&config, &map, &generation]);
        let mut config = special::merged(config, map);
        let json = match read(&path)? {
            Some(json) => json,
            None => older::json(folder, &mut config)?.ok_or_else(|| Error::Missing { path: path.clone() })?,
        };
        let (mut inner, padding) = parse(&json, &path)?;
        if let Some(token) = padding {
            // A padding that was saved names the token for it, as long as nothing else does.
            config.values.entry("pad_token").or_insert_with(|| token.into());
        }
        let extra = added::add(folder, &config, &mut inner)?;
        let special = special::read(folder, &config, &mut inner)?;
        // What was added as something else stays that, but for Qwen2's kind.
        let class = config.get("tokenizer_class").and_then(serde_json::Value::as_str).unwrap_or_default();
        let anew = class.trim_end_matches("Fast") == "Qwen2Tokenizer";
        for token in extra {
            if anew || !inner.get_added_vocabulary().get_vocab().contains_key(&token) {
                mark_special(&mut inner, &token, &path)?;
            }
        }
        inner.set_encode_special_tokens(config.flag("split_special_tokens")?.unwrap_or(false));
        let mut tokenizer = Self::assemble(inner, special, &path)?;
        let around = [&tokenizer.prefix[..], &tokenizer.suffix];
        tokenizer.notes = special::contradictions(&config, &tokenizer.special, around)?;
        tokenizer.notes.extend(notes);
        tokenizer.continuation = Continuation::of(&generation);
        for key in config.values.keys().filter(|it| it.ends_with("_token") && !it.starts_with("add_")) {
            if let Some(text) = config.token(key).unwrap_or(None) {
                tokenizer.token_texts.retain(|it| it.0 != *key);
                tokenizer.token_texts.push((key.clone(), text));
            }
        }
        Ok(tokenizer)
    }

    /// Builds a tokenizer from the text of a `tokenizer.json`, without a folder.
    ///
    /// # Errors
    /// Text that is not a tokenizer.
    pub fn from_json(json: &[u8], special: SpecialTokens) -> Result<Self> {
        let path = PathBuf::from("tokenizer.json");
        Self::assemble(parse(json, &path)?.0, special, &path)
    }

    fn assemble(inner: tokenizers::Tokenizer, special: SpecialTokens, path: &Path) -> Result<Self> {
        let (prefix, suffix) = surroundings(&inner, path)?;
        let named = [special.bos, special.eos, special.pad, special.unk].into_iter().flatten();
        let vocabulary = inner.get_vocab(true);
        let longest_token = vocabulary.keys().map(String::len).max().unwrap_or(0).max(1);
        let largest_id = vocabulary
            .into_values()
            .chain(named)
            .max()
            .ok_or_else(|| Error::CorruptTokenizer { path: path.into(), reason: "its vocabulary is empty".into() })?;
        Ok(Self {
            token_texts: texts_of(&inner, &special),
            inner,
            special,
            prefix,
            suffix,
            largest_id,
            longest_token,
            limit: u32::MAX,
            notes: Vec::new(),
            continuation: Continuation::default(),
        })
    }

    /// Things a user should know, such as a flag that has no effect.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How the folder would have texts continued; nothing here goes by it.
    pub fn continuation_asked(&self) -> &Continuation {
        &self.continuation
    }

    /// The special tokens and where they came from.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The texts of the special tokens by their keys, such as `eos_token`.
    pub fn token_texts(&self) -> &[(String, String)] {
        &self.token_texts
    }

    /// The ids of tokens that are no text.
    pub(crate) fn special_ids(&self) -> HashSet<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let special = added.into_iter().filter(|it| it.1.special).map(|it| it.0);
        special.chain(self.special.stop.iter().copied()).chain(self.special.eos).collect()
    }

    /// Beginning-of-text id.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// End-of-text id.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Ids at which generation stops: those of the generation settings and the end-of-text token.
    pub fn stop_ids(&self) -> &[u32] {
        &self.special.stop
    }

    /// Whether it gives each token of `other` the same id, and knows no more.
    pub fn knows_what(&self, other: &Tokenizer) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// Stops where `other` does, too, at tokens that both have under one id.
    pub fn stop_also(&mut self, other: &Tokenizer) {
        for id in &other.special.stop {
            if !self.special.stop.contains(id) && self.id_to_token(*id) == other.id_to_token(*id) {
                self.special.stop.push(*id);
            }
        }
    }

    /// One more than the largest id: the rows that an embedding must have.
    pub fn vocab_size(&self) -> usize {
        self.largest_id as usize + 1
    }

    /// The id of a token by its exact name.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The name of a token as it stands in the vocabulary (for byte-level tokenizers not readable text).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Makes sure that no text gives an id that the model has no embedding for. A model may have spare rows; a token that was
    /// added beyond them, such as one for padding, is refused only in a text that holds it.
    ///
    /// # Errors
    /// Names both numbers.
    pub fn check_vocab(&mut self, model_vocab: usize) -> Result<()> {
        let limit = u32::try_from(model_vocab).unwrap_or(u32::MAX);
        let largest_of = |ids: &mut dyn Iterator<Item = u32>| ids.max().filter(|it| *it >= limit);
        if self.largest_id >= limit {
            let added = self.inner.get_added_vocabulary().get_vocab();
            let words = self.inner.get_vocab(false);
            let mut always = words.into_iter().filter(|it| !added.contains_key(&it.0)).map(|it| it.1);
            let mut around = self.prefix.iter().chain(&self.suffix).copied();
            if let Some(largest_id) = largest_of(&mut always).or_else(|| largest_of(&mut around)) {
                return Err(Error::VocabMismatch { largest_id, model_vocab });
            }
        }
        self.limit = limit;
        Ok(())
    }

    /// Refuses ids that the model has no embedding for.
    pub(crate) fn within(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|it| **it >= self.limit) else { return Ok(()) };
        let token = self.id_to_token(*id).unwrap_or_default();
        Err(refused(format!(
            "it holds {token:?} (id {id}), and the model has no embedding for ids from {} on",
            self.limit
        )))
    }

    /// Ids of a text with the special tokens that this tokenizer puts around every text.
    ///
    /// # Errors
    /// A text that the vocabulary cannot express.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_prompt(text)?;
        ids.extend(&self.suffix);
        Ok(ids)
    }

    /// Ids of a text that is to be continued: with what goes before every text, without what closes it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.prefix.clone();
        ids.extend(self.encode_plain(text)?);
        Ok(ids)
    }

    /// Ids of the text alone; for text that already holds its special tokens, as chat templates write it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(refused)?;
        self.within(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids; `skip_special` leaves out the special tokens. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// A decoder that fails. Ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special)).map_err(|reason| Error::Decode { count: ids.len(), reason })
    }

    /// Text of ids that go on after others, without special tokens: with what stands between the two, such as the space before a
    /// word, which a decoder leaves out at the beginning of a text.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn continuation(&self, before: &[u32], ids: &[u32]) -> Result<String> {
        let prompt = self.decode(before, true)?;
        let all = self.decode(&[before, ids].concat(), true)?;
        match all.strip_prefix(&prompt) {
            Some(rest) => Ok(rest.to_owned()),
            None => self.decode(ids, true),
        }
    }

    /// Starts the text of a generation, token by token.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// No token stands for more bytes of text than this, unless the tokenizer drops some.
    pub(crate) fn longest_token(&self) -> usize {
        self.longest_token
    }

    /// The ids that go before every text.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The ids that close every text that is not to be continued.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// Ids and, for each, the byte range of the text that it stands for.
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Result<Encoding> {
        let encoding = guarded(|| self.inner.encode(text, false)).map_err(refused)?;
        self.within(encoding.get_ids())?;
        Ok(encoding)
    }
}

fn refused(reason: String) -> Error {
    Error::Encode { place: "text".into(), reason }
}

/// The tokenizer without truncation and padding, and the token that it was padded with.
fn parse(json: &[u8], path: &Path) -> Result<(tokenizers::Tokenizer, Option<String>)> {
    let corrupt = |reason: String| Error::CorruptTokenizer { path: path.into(), reason };
    // Broken JSON is found here, with its place, before the tokenizers crate can trip over it.
    let text = std::str::from_utf8(json).map_err(|error| corrupt(error.to_string()))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| corrupt(error.to_string()))?;
    let mut inner = guarded(|| text.parse::<tokenizers::Tokenizer>()).map_err(corrupt)?;
    // A file saved after use can carry the last caller's truncation and padding: ids would silently change length.
    inner.with_truncation(None).map_err(|error| corrupt(error.to_string()))?;
    let padding = inner.get_padding().map(|it| it.pad_token.clone());
    inner.with_padding(None);
    Ok((inner, padding))
}

/// What the post-processor puts before and after a text, found by sending one made-up token through it.
fn surroundings(inner: &tokenizers::Tokenizer, path: &Path) -> Result<(Vec<u32>, Vec<u32>)> {
    const PROBE: u32 = u32::MAX;
    let Some(processor) = inner.get_post_processor() else { return Ok((Vec::new(), Vec::new())) };
    let corrupt = |reason: String| Error::CorruptTokenizer { path: path.into(), reason };
    let probe = Encoding::from_tokens(vec![Token::new(PROBE, "x".into(), (0, 1))], 0);
    let processed = guarded(|| processor.process(probe, None, true)).map_err(corrupt)?;
    let ids = processed.get_ids();
    let mut parts = ids.split(|&id| id == PROBE);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(prefix), Some(suffix), None) => Ok((prefix.to_vec(), suffix.to_vec())),
        _ => Err(corrupt("its post-processor does not keep the text exactly once".into())),
    }
}

/// The keys and texts of the special tokens that have roles.
fn texts_of(inner: &tokenizers::Tokenizer, special: &SpecialTokens) -> Vec<(String, String)> {
    let roles = [("bos", special.bos), ("eos", special.eos), ("pad", special.pad), ("unk", special.unk)];
    let text = |(role, id): (&str, Option<u32>)| Some((format!("{role}_token"), inner.id_to_token(id?)?));
    roles.into_iter().filter_map(text).collect()
}

/// The text of a file beside the tokenizer, or nothing where there is none.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let corrupt = |reason: String| Error::CorruptTokenizer { path: path.into(), reason };
    String::from_utf8(bytes).map(Some).map_err(|error| corrupt(error.to_string()))
}

/// The value of a key in a JSON file beside the tokenizer, unless it is null.
pub(crate) fn read_key(path: &Path, key: &str) -> Result<Option<serde_json::Value>> {
    Ok(Settings::read(path.into())?.get(key).cloned())
}

/// The bytes of a file, or nothing where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    // A pipe would be waited for without end.
    let found = match std::fs::metadata(path) {
        Ok(it) if !it.is_file() => {
            let reason = "it is no file".into();
            return Err(Error::CorruptTokenizer { path: path.into(), reason });
        }
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    match found {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}

/// Makes sure that a named special token is one: skipped in decoding, found whole in text.
fn mark_special(inner: &mut tokenizers::Tokenizer, token: &str, path: &Path) -> Result<()> {
    if inner.get_added_vocabulary().is_special_token(token) {
        return Ok(());
    }
    let added = inner.add_special_tokens([AddedToken::from(token, true)]);
    added.map(|_| ()).map_err(|error| Error::CorruptTokenizer { path: path.into(), reason: error.to_string() })
}
