//! Writing a whole model folder: weights, configuration, tokenizer.

use crate::failure::user_error;
use anyhow::Context as _;
use halfbyte_data::TOKENIZER_FILES;
use halfbyte_files::{ShardedWriter, TensorSpec, read_bytes, write_atomic};
use halfbyte_lora::Adapter;
use halfbyte_models::{Model, model_tensors};
use halfbyte_tensor::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::{fs, panic::resume_unwind, path::Path, sync::mpsc};

/// Writes a model with an adapter folded in, as a folder that transformers loads. The configuration, by which a folder is known
/// as a model's, is written last. Other files come from the folders `from`, of which the last counts.
pub(crate) fn save_model(
    (model, adapter): (&dyn Model, Option<&Adapter>),
    from: &[&Path],
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
    for from in from {
        copy_files(from, to, &["generation_config.json"])?;
        copy_tokenizer(from, to)?;
    }
    Ok(write_atomic(&to.join("config.json"), format!("{:#}\n", serde_json::Value::Object(config)).as_bytes())?)
}

/// One file, or several of at most so many bytes with an index. Tensors are made and written one at a time.
fn write_weights(
    (model, adapter): (&dyn Model, Option<&Adapter>),
    to: &Path,
    dtype: DType,
    max_shard_size: u64,
) -> anyhow::Result<()> {
    let mut specs = Vec::new();
    model_tensors(model, adapter, |name, shape, _| -> anyhow::Result<()> {
        specs.push(TensorSpec::new(name, dtype.in_files(), shape));
        Ok(())
    })?;
    let mut writer = ShardedWriter::create(to, specs, max_shard_size);
    // One tensor is written while the next one is made.
    std::thread::scope(|scope| {
        let (hand_over, made) = mpsc::sync_channel::<(String, Tensor)>(0);
        let written = scope.spawn(move || {
            for (name, value) in made {
                writer.write(&name, &value.le_bytes())?;
            }
            halfbyte_files::Result::Ok(writer)
        });
        // Kept until the next one is made, so that what is held does not hang on how fast files are written.
        let mut before: Option<Tensor> = None;
        let all_made = model_tensors(
            model,
            adapter,
            |name, _, value: &dyn Fn() -> halfbyte_autograd::Result<Tensor>| -> anyhow::Result<()> {
                let value = value()?.to_device(&Device::Cpu)?.to_dtype(dtype);
                // A merge is judged by its predictions.
                if adapter.is_none() && !value.is_finite()? {
                    return Err(user_error(format!(
                        "{name} holds values that are beyond the range of {}; bf16 and f32 reach further than f16",
                        dtype.torch_name()
                    )));
                }
                drop(before.replace(value.clone()));
                hand_over.send((name.to_owned(), value)).context("the writer stopped before the last tensor")
            },
        );
        drop(hand_over);
        let written = written.join().unwrap_or_else(|panic| resume_unwind(panic));
        // If nobody took a tensor, why is what the writer says.
        let writer = written?;
        all_made?;
        Ok(writer.finish()?)
    })
}

/// Copies the tokenizer's files, so that the result can be used without its base.
pub(crate) fn copy_tokenizer(from: &Path, to: &Path) -> anyhow::Result<()> {
    copy_files(from, to, &TOKENIZER_FILES)
}

/// Where a folder may hold a chat template, in the order in which they count.
const TEMPLATE_FILES: [&str; 3] = ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"];

/// Has a folder to which the tokenizer's files of several others were copied write conversations by the template of the last one that
/// has any, where files of another would go before it or have replaced it.
pub(crate) fn keep_template(from: &[&Path], to: &Path) -> anyhow::Result<()> {
    let Some((file, template)) = from.iter().rev().find_map(|it| template_of(it)) else { return Ok(()) };
    let first = to.join(TEMPLATE_FILES[0]);
    if file != TEMPLATE_FILES[0] && first.exists() {
        fs::remove_file(&first).with_context(|| first.display().to_string())?;
    }
    if template_of(to).is_some_and(|it| it.1 == template) {
        return Ok(());
    }
    let path = to.join(TEMPLATE_FILES[1]);
    let mut settings = match path.exists() {
        true => serde_json::from_slice(&read_bytes(&path)?).with_context(|| path.display().to_string())?,
        false => Map::new(),
    };
    settings.insert("chat_template".into(), template);
    Ok(write_atomic(&path, format!("{:#}\n", Value::Object(settings)).as_bytes())?)
}

/// The template of a folder, and the file that holds it.
fn template_of(folder: &Path) -> Option<(&'static str, Value)> {
    TEMPLATE_FILES.into_iter().find_map(|file| Some((file, template_in(&folder.join(file))?)))
}

/// What a file holds of a chat template. What is wrong with it says whoever writes by it.
fn template_in(path: &Path) -> Option<Value> {
    let bytes = read_bytes(path).ok()?;
    if path.extension().is_some_and(|it| it == "json") {
        let Value::Object(mut keys) = serde_json::from_slice(&bytes).ok()? else { return None };
        return keys.remove("chat_template").filter(|it| !it.is_null());
    }
    Some(String::from_utf8_lossy(&bytes).into())
}

fn copy_files(from: &Path, to: &Path, names: &[&str]) -> anyhow::Result<()> {
    for name in names {
        let source = from.join(name);
        if source.exists() {
            write_atomic(&to.join(name), &read_bytes(&source)?)?;
        }
    }
    Ok(())
}
