//! Seeded generator of Halfbyte's embedded data: labelled reviews, instruction rows, the corpus on which the small base
//! models are pretrained, their tokenizer and their initial weights. Everything is text of our own making, and the same
//! seed gives the same bytes on every machine.

pub mod corpus;
pub mod dice;
pub mod domains;
pub mod frames;
pub mod init;
pub mod instructions;
pub mod lexicon;
mod opinions;
mod people;
mod phrase;
pub mod questions;
pub mod reviews;
mod stories;
pub mod synth;
pub mod table;
pub mod tokenizer;
mod vocabulary;
mod world;

use anyhow::{Context, Result};
use lexicon::Split;
use std::path::Path;

/// Seed of the committed files.
pub const SEED: u64 = 20;
/// Rows of `reviews-train.parquet`.
pub const TRAIN_REVIEWS: usize = 1_200;
/// Rows of `reviews-test.parquet`.
pub const HELD_OUT_REVIEWS: usize = 300;
/// Rows of `instructions.parquet`.
pub const TRAIN_INSTRUCTIONS: usize = 1_000;
/// Rows of `instructions-test.parquet`.
pub const HELD_OUT_INSTRUCTIONS: usize = 200;

/// Writes the four committed parquet files into a folder.
///
/// # Errors
/// If the folder or a file cannot be written.
pub fn generate(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let reviews = [
        ("reviews-train.parquet", Split::Train, TRAIN_REVIEWS),
        ("reviews-test.parquet", Split::HeldOut, HELD_OUT_REVIEWS),
    ];
    for (name, split, count) in reviews {
        table::write_reviews(&folder.join(name), &reviews::review_rows(SEED, split, count))?;
    }
    let (train, test) = instructions::instruction_rows(SEED, TRAIN_INSTRUCTIONS, HELD_OUT_INSTRUCTIONS);
    table::write_instructions(&folder.join("instructions.parquet"), &train)?;
    table::write_instructions(&folder.join("instructions-test.parquet"), &test)
}
