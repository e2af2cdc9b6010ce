//! Writing a whole model folder: weights, configuration, tokenizer.

use anyhow::Context;
use halfbyte_data::TOKENIZER_FILES;
use halfbyte_lora::{Adapter, write_atomic};
use halfbyte_models::{Model, SafetensorsWriter, model_tensors};
use halfbyte_tensor::{DType, Tensor};
use serde_json::{Map, json};
use std::path::Path;

/// Writes a model with an adapter folded in, as a folder that transformers loads.
pub(crate) fn save_model(
    (model, adapter): (&dyn Model, Option<&Adapter>),
    from: &Path,
    to: &Path,
    dtype: DType,
    max_shard_size: u64,
) -> anyhow::Result<()> {
    write_weights((model, adapter), to, dtype, max_shard_size)?;
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

/// One file, or several of at most so many bytes with an index, as Hugging Face names them; a tensor that is larger has a
/// file of its own. Tensors are made and written one at a time.
fn write_weights(
    (model, adapter): (&dyn Model, Option<&Adapter>),
    to: &Path,
    dtype: DType,
    max_shard_size: u64,
) -> anyhow::Result<()> {
    let mut shards: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    model_tensors(model, adapter, |name, shape, _| {
        let bytes = (shape.iter().product::<usize>() * dtype.size()) as u64;
        if filled > 0 && filled + bytes > max_shard_size {
            shards.push(Vec::new());
            filled = 0;
        }
        (filled, total) = (filled + bytes, total + bytes);
        shards.last_mut().expect("there is a first one").push((name.to_owned(), shape.to_vec()));
        Ok::<(), anyhow::Error>(())
    })?;
    let count = shards.len();
    let name_of = |shard: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
    };
    let mut weight_map = Map::new();
    for (shard, tensors) in shards.iter().enumerate() {
        weight_map.extend(tensors.iter().map(|it| (it.0.clone(), json!(name_of(shard)))));
    }
    let mut waiting = shards.into_iter().enumerate();
    let mut next = || -> anyhow::Result<(SafetensorsWriter, usize)> {
        let (shard, tensors) = waiting.next().expect("as many tensors as were counted");
        let count = tensors.len();
        Ok((SafetensorsWriter::create(&to.join(name_of(shard)), tensors, dtype)?, count))
    };
    let mut open: Option<(SafetensorsWriter, usize)> = None;
    model_tensors(model, adapter, |name, _, value: &dyn Fn() -> Tensor| -> anyhow::Result<()> {
        let (mut writer, left) = match open.take() {
            Some(it) => it,
            None => next()?,
        };
        writer.write(name, &value())?;
        match left - 1 {
            0 => writer.finish()?,
            left => open = Some((writer, left)),
        }
        Ok(())
    })?;
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_atomic(&to.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())?;
    }
    Ok(())
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
