use halfbyte_lora::read_adapter;
use halfbyte_train::{Length, RunConfig};
use std::path::Path;

#[allow(dead_code, reason = "its main is for the command line")]
#[path = "../../examples/train_adapter.rs"]
mod train_adapter;

#[test]
fn the_example_is_short_and_leaves_an_adapter() {
    let text = include_str!("../../examples/train_adapter.rs");
    assert!(text.lines().count() <= 40, "an example that is read at a glance");
    let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    let (base, rows) = (datasets.join("models/tiny-llama"), datasets.join("reviews-train.parquet"));
    let out = tempfile::tempdir().unwrap();
    let adapter = out.path().join("adapter");
    let length = Length { max_steps: Some(2), ..RunConfig::default().length };
    train_adapter::train(&base, &rows, &adapter, RunConfig { length, ..RunConfig::default() }).unwrap();
    let file = read_adapter(&adapter).unwrap();
    assert_eq!((file.config.rank, file.config.lora_alpha), (8, 16.0));
    assert!(file.notes.is_empty());
}
