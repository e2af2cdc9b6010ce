//! A stranger's program: lines of JSON to batches, with a tokenizer made on the spot.

use halfbyte_data::{BatchConfig, DataConfig, Dataset, IGNORE, Packing, Position, SpecialTokens, Tokenizer};

const TOKENIZER: &str = r#"{
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
  "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true}],
  "pre_tokenizer": {"type": "Whitespace"},
  "model": {"type": "WordLevel", "vocab": {"</s>": 0, "?": 1, "a": 2, "b": 3, "c": 4}, "unk_token": "?"}
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::temp_dir().join(format!("halfbyte-consumer-{}.jsonl", std::process::id()));
    std::fs::write(&file, "{\"text\": \"a b c\"}\n{\"text\": null}\n{\"text\": \"c b\"}\n")?;

    let special = SpecialTokens { eos: Some(0), stop: vec![0], ..SpecialTokens::default() };
    let tokenizer = Tokenizer::from_json(TOKENIZER.as_bytes(), special)?;
    let loaded = Dataset::load(&file, &tokenizer, &DataConfig::default());
    std::fs::remove_file(&file)?;
    let (dataset, report) = loaded?;
    assert_eq!((dataset.len(), report.rows_used), (2, 2), "{report}");

    let config = BatchConfig { batch_size: 2, shuffle: None, drop_last: true, packing: Packing::Off };
    let batch = dataset.batches(&config, Position::default())?.next().ok_or("there is a batch")?;
    assert_eq!(batch.ids, [2, 3, 4, 4, 3]);
    assert_eq!(batch.targets, [3, 4, IGNORE, 3, IGNORE]);
    assert_eq!(batch.lengths, [3, 2]);
    let packed = BatchConfig { batch_size: 1, packing: Packing::On { max_length: 5 }, ..config };
    assert_eq!(dataset.epoch_size(&packed)?.rows, 1);
    Ok(())
}
