//! Rows to train on, as parquet and as JSON Lines.

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde_json::json;
use std::{fs::File, path::Path, sync::Arc};

/// Sentences that differ in length and whose words mostly follow from the words before.
pub const ROWS: [&str; 8] = [
    "the cat sat on the mat",
    "the dog ran over the hill and slept all day",
    "the bird flew under the tree",
    "the fish swam in the sea all day",
    "the old cat sat on the mat",
    "a big dog ran over the hill",
    "a red bird flew under the tree and slept",
    "the big fish swam in the sea",
];

/// Writes a parquet file with the columns `id` (integers) and `text`.
pub fn write_parquet(path: &Path, rows: &[Option<&str>]) {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows.len() as i64));
    let text: ArrayRef = Arc::new(rows.iter().copied().collect::<StringArray>());
    let batch = RecordBatch::try_from_iter_with_nullable([("id", ids, false), ("text", text, true)])
        .expect("two columns of one length");
    let mut writer =
        ArrowWriter::try_new(File::create(path).expect("a new file"), batch.schema(), None).expect("a schema");
    writer.write(&batch).expect("a batch of that schema");
    writer.close().expect("a footer");
}

/// Writes one object a line with the key `text`.
pub fn write_jsonl(path: &Path, rows: &[Option<&str>]) {
    let text: String = rows.iter().map(|it| json!({ "text": it }).to_string() + "\n").collect();
    std::fs::write(path, text).expect("a new file");
}
