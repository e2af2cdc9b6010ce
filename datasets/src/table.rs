//! Parquet files with the same bytes for the same rows.

use crate::instructions::Instruction;
use crate::reviews::Review;
use anyhow::{Context, Result};
use arrow_array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Rows that are held in memory at a time while a corpus is written.
const BATCH: usize = 8_192;

/// Columns `text` (rendered with the label), `review`, `label` (0 or 1).
///
/// # Errors
/// If the file cannot be written.
pub fn write_reviews(path: &Path, rows: &[Review]) -> Result<()> {
    let columns = vec![
        ("text", strings(rows.iter().map(Review::rendered))),
        ("review", strings(rows.iter().map(|r| r.text.clone()))),
        ("label", Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.polarity.label()))) as ArrayRef),
    ];
    write(path, std::iter::once(columns))
}

/// Columns `instruction`, `input` (may be empty, never null), `output`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_instructions(path: &Path, rows: &[Instruction]) -> Result<()> {
    let columns = vec![
        ("instruction", strings(rows.iter().map(|r| r.instruction.clone()))),
        ("input", strings(rows.iter().map(|r| r.input.clone()))),
        ("output", strings(rows.iter().map(|r| r.output.clone()))),
    ];
    write(path, std::iter::once(columns))
}

/// One column `text`, written batch by batch.
///
/// # Errors
/// If the file cannot be written.
pub fn write_texts(path: &Path, mut texts: impl Iterator<Item = String>) -> Result<()> {
    write(
        path,
        std::iter::from_fn(|| {
            let batch: Vec<String> = texts.by_ref().take(BATCH).collect();
            (!batch.is_empty()).then(|| vec![("text", strings(batch.into_iter()))])
        }),
    )
}

fn strings(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn write(path: &Path, batches: impl Iterator<Item = Columns>) -> Result<()> {
    let written = || format!("cannot write {}", path.display());
    let mut batches = batches.peekable();
    let first = batches.peek().context("there are no rows to write: ask for at least one")?;
    let fields = first.iter().map(|(name, column)| Field::new(*name, kind(column), false));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(9)?))
        // Neither helps a reader of so few rows, and the name would change the bytes with each version of the crate.
        .set_statistics_enabled(EnabledStatistics::None)
        .set_created_by("halfbyte-datasets".to_owned())
        .build();
    let file = File::create(path).with_context(written)?;
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).with_context(written)?;
    for columns in batches {
        let arrays = columns.into_iter().map(|(_, column)| column).collect();
        writer.write(&RecordBatch::try_new(schema.clone(), arrays)?).with_context(written)?;
    }
    writer.close().with_context(written)?;
    Ok(())
}

fn kind(column: &ArrayRef) -> DataType {
    column.data_type().clone()
}
