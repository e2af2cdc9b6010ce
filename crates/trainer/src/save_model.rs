//! Writing a whole model folder: weights, configuration, tokenizer.

use anyhow::Context;
use halfbyte_data::TOKENIZER_FILES;
use halfbyte_lora::write_atomic;
use halfbyte_models::{Model, SafetensorsWriter, model_tensors};
use halfbyte_tensor::{DType, Tensor};
use serde_json::json;
use std::path::Path;

/// Writes a model with its active adapter folded in, as a folder that transformers loads.
pub(crate) fn save_model(model: &dyn Model, from: &Path, to: &Path, dtype: DType) -> anyhow::Result<()> {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    model_tensors(model, |name, shape, _| {
        tensors.push((name.to_owned(), shape.to_vec()));
        Ok::<(), anyhow::Error>(())
    })?;
    let mut writer = SafetensorsWriter::create(&to.join("model.safetensors"), tensors, dtype)?;
    model_tensors(model, |name, _, value: &dyn Fn() -> Tensor| writer.write(name, &value()))?;
    writer.finish()?;
    let mut config = model.config().raw.clone();
    // Version 5 of transformers calls it dtype, older ones torch_dtype; a file keeps the key that it has.
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.into(), json!(dtype.torch_name()));
    // The base may have been stored quantised; what is written here is not.
    config.remove("quantization_config");
    write_atomic(&to.join("config.json"), format!("{:#}\n", serde_json::Value::Object(config)).as_bytes())?;
    copy_files(from, to, &["generation_config.json"])?;
    copy_tokenizer(from, to)
}

/// Copies the tokenizer's files, so that the result can be used without its base.
pub(crate) fn copy_tokenizer(from: &Path, to: &Path) -> anyhow::Result<()> {
    copy_files(from, to, &TOKENIZER_FILES)
}

fn copy_files(from: &Path, to: &Path, names: &[&str]) -> anyhow::Result<()> {
    for name in names {
        let source = from.join(name);
        if source.exists() {
            let contents = std::fs::read(&source).with_context(|| source.display().to_string())?;
            write_atomic(&to.join(name), &contents)?;
        }
    }
    Ok(())
}
