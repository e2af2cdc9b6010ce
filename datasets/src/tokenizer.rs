//! A byte-level BPE tokenizer, trained on the corpus.

use crate::{SEED, corpus};
use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model, Tokenizer, TokenizerBuilder};

/// Entries, special tokens included.
pub const VOCABULARY: usize = 3_072;
/// Begins and ends a document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Fills a batch; never part of a text.
pub const PAD: &str = "<|pad|>";
/// Id of [`END_OF_TEXT`].
pub const END_OF_TEXT_ID: u32 = 0;
/// Id of [`PAD`].
pub const PAD_ID: u32 = 1;

/// Documents that the merges are counted on.
const DOCUMENTS: usize = 30_000;
/// Words of the prompt and of the label, which must be single tokens though the corpus has few of them.
const WHOLE_WORDS: &str = "Review: it.\nSentiment: positive\nSentiment: negative";
const WHOLE_WORD_COPIES: usize = 3_000;

/// The tokenizer of both base models; it does not depend on the seed of their weights.
///
/// # Errors
/// If training ends with fewer entries than the models expect.
pub fn train() -> Result<Tokenizer> {
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<_, tokenizers::NormalizerWrapper, _, ByteLevel, _>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level.trim_offsets(false)))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(|e| anyhow!("cannot set up the tokenizer: {e}"))?;
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(VOCABULARY)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true), AddedToken::from(PAD, true)])
        .build();
    let copies = std::iter::repeat_n(WHOLE_WORDS.to_owned(), WHOLE_WORD_COPIES);
    tokenizer
        .train(&mut trainer, corpus::documents(SEED, DOCUMENTS).chain(copies))
        .map_err(|e| anyhow!("cannot train the tokenizer: {e}"))?;
    let entries = tokenizer.get_model().get_vocab_size();
    ensure!(entries == VOCABULARY, "the tokenizer has {entries} entries where the models expect {VOCABULARY}");
    Ok(tokenizer.into())
}

/// `tokenizer_config.json`.
pub fn config(max_length: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": PAD,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": max_length,
        "padding_side": "right",
    })
}
