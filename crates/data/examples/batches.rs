//! Shows what a trainer would see: `cargo run -p halfbyte-data --example batches -- MODEL_FOLDER DATA_FILE [COLUMN]`
//!
//! MODEL_FOLDER holds a `tokenizer.json`; DATA_FILE is parquet or JSON Lines.
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::path::PathBuf;

use halfbyte_data::{BatchConfig, Columns, DataConfig, Dataset, Packing, Position, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(data)) = (args.next(), args.next()) else {
        return Err("usage: batches MODEL_FOLDER DATA_FILE [COLUMN]".into());
    };
    let column = args.next().unwrap_or_else(|| "text".into());
    let columns = if column == "instruction" { Columns::instruction() } else { Columns::Text(column) };

    let tokenizer = Tokenizer::load(&PathBuf::from(model))?;
    let begun = std::time::Instant::now();
    let config = DataConfig { columns, max_length: 128, ..DataConfig::default() };
    let (dataset, report) = Dataset::load(&PathBuf::from(data), &tokenizer, &config)?;
    println!("{report} ({:.2} s, {} bytes held)", begun.elapsed().as_secs_f64(), dataset.bytes());
    for warning in report.warnings() {
        println!("warning: {warning}");
    }
    for packing in [Packing::Off, Packing::On { max_length: 128 }] {
        let config = BatchConfig { batch_size: 4, shuffle: Some(42), drop_last: false, packing };
        println!("\n{packing:?}: {} batches an epoch", dataset.epoch_size(&config)?.batches);
        for batch in dataset.batches(&config, Position::default())?.take(2) {
            println!("\nexamples {:?}: {} tokens, {} of them trained", batch.rows, batch.tokens, batch.trained);
            println!("the first: {:?}", tokenizer.decode(&batch.ids[..batch.lengths[0]], false)?);
        }
    }
    Ok(())
}
