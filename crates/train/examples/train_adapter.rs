//! An adapter on a 4-bit base: `cargo run --release --example train_adapter MODEL_FOLDER ROWS.parquet ADAPTER_FOLDER`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use halfbyte_data::{DataConfig, Dataset, Tokenizer};
use halfbyte_frozen::Format;
use halfbyte_lora::{LoraConfig, attach, save_adapter};
use halfbyte_models::{Loading, ModelFolder};
use halfbyte_tensor::Device;
use halfbyte_train::{Event, Optim, OptimConfig, Run, RunConfig, parameters};
use std::{error::Error, path::Path, sync::Arc};

/// Writes the adapter's two files, as PEFT reads them.
pub(crate) fn train(base: &Path, rows: &Path, out: &Path, config: RunConfig) -> Result<(), Box<dyn Error>> {
    let loading = Loading::Frozen { format: &Format::QLORA, prepare: None };
    let mut model = ModelFolder::open(base)?.load(loading, &Device::Cpu, &mut |_| ())?;
    let lora = LoraConfig { rank: 8, lora_alpha: 16.0, ..LoraConfig::default() };
    let (adapter, _) = attach(&model.modules(), &lora, "default", 42)?;
    let adapter = Arc::new(adapter);

    let (data, _) = Dataset::load(rows, &Tokenizer::load(base)?, &DataConfig::default())?;
    let mut optim = Optim::new(&Device::Cpu, &parameters(model.as_ref(), Some(&adapter)), &OptimConfig::default())?;
    let mut show = |event: &Event<'_>| {
        if let Event::Step(it) = event {
            println!("step {}: loss {:.4}", it.step, it.loss);
        }
        Ok(())
    };
    let mut run = Run::new(config, (model.as_ref(), Some(adapter.clone())), &mut optim, &data);
    run.observers.push(&mut show);
    run.train(None)?;
    std::fs::create_dir_all(out)?;
    Ok(save_adapter(out, &adapter)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [base, rows, adapter] = &paths[..] else { return Err("usage: MODEL_FOLDER ROWS ADAPTER_FOLDER".into()) };
    train(base.as_ref(), rows.as_ref(), adapter.as_ref(), RunConfig::default())
}
