//! Files of text and of conversations to batches of token ids with loss masks.
//!
//! This crate exists so that the question "which tokens count in the loss?" is answered in one place. A file is read
//! a few rows at a time, each row is rendered and tokenised once, and out come ids *and* mask together; nothing later
//! guesses labels again. Rows that cannot train anything are counted in a [`Report`], never dropped in silence.
//!
//! ```no_run
//! use halfbyte_data::{BatchConfig, DataConfig, Dataset, Packing, Position, Tokenizer};
//!
//! # fn main() -> halfbyte_data::Result<()> {
//! let tokenizer = Tokenizer::load("model".as_ref())?;
//! let (dataset, report) = Dataset::load("train.parquet".as_ref(), &tokenizer, &DataConfig::default())?;
//! assert_eq!(report.rows_used, dataset.len() as u64);
//! let config = BatchConfig { batch_size: 4, shuffle: Some(42), drop_last: true, packing: Packing::Off };
//! for batch in dataset.batches(&config, Position::default())?.take(100) {
//!     assert_eq!(batch.ids.len(), batch.lengths.iter().sum::<usize>());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The same file, tokenizer and settings give the same bits, whatever the number of threads.
#![forbid(unsafe_code)]

mod batch;
mod chat;
mod columns;
mod config;
mod dataset;
mod encode;
mod epoch;
mod error;
mod files;
mod guard;
mod hold_out;
mod kept;
mod mixture;
mod packing;
mod prompts;
mod reader;
mod render;
mod report;
mod shuffle;
mod streamed;
mod tokenised;
mod tokenizer;

pub use batch::{Batch, BatchConfig, Batches, Packing, Position};
pub use chat::{CHATML, ChatTemplate, INSTRUCTION};
pub use columns::{ChatColumns, Chosen, ColumnNames, Columns, Layout, Turns};
pub use config::{DataConfig, Excess, LossOn, parse_rows};
pub use dataset::{Dataset, Example, Row};
pub use epoch::EpochSize;
pub use error::{Error, Result};
pub use files::{DataFiles, Part};
pub use hold_out::HoldOut;
pub use mixture::{Share, parse_weight};
pub use prompts::{Prompt, PromptConfig};
pub use reader::{Column, columns};
pub use render::instruction_prompt;
pub use report::Report;
pub use shuffle::permutation;
pub use streamed::{Examples, Feed, Stream, StreamBatches, StreamConfig};
pub use tokenised::Tokenised;
pub use tokenizer::{
    Continuation, GENERATION_CONFIG_KEYS, KeyUse, Neutral, SpecialTokens, TOKENIZER_CONFIG_KEYS, TOKENIZER_FILES,
    TextStream, Tokenizer,
};

/// Target of a position that has no loss: the last token of a sequence, the prompt of an instruction row.
pub const IGNORE: u32 = u32::MAX;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
