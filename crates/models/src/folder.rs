//! A Hugging Face folder: its configuration and its weights, read tensor by tensor.

use crate::{Error, ModelConfig, Result};
use halfbyte_files::{ShardedFiles, read_text};
use halfbyte_tensor::{DType, Tensor};
use std::path::Path;

/// An opened model folder. All files of weights are checked for their headers and lengths when it is opened.
#[derive(Debug)]
pub struct ModelFolder {
    config: ModelConfig,
    files: ShardedFiles,
}

impl ModelFolder {
    /// Opens a folder with a `config.json` and one or many safetensors files.
    pub fn open(dir: &Path) -> Result<ModelFolder> {
        if !dir.is_dir() {
            let message = "is not a folder; --model takes a folder in Hugging Face's layout (config.json, model.safetensors, tokenizer.json)";
            return Err(Error::File { path: dir.to_owned(), message: message.into() });
        }
        let config_path = dir.join("config.json");
        if !config_path.exists() {
            let adapter = dir.join("adapter_config.json").exists();
            let hint = if adapter {
                "this is an adapter: pass it with --adapter, and its base with --model"
            } else {
                "a model folder has one beside its weights"
            };
            return Err(Error::File { path: config_path, message: format!("is missing; {hint}") });
        }
        let text = read_text(&config_path)?;
        let config = ModelConfig::parse(&config_path, &text)?;
        Ok(ModelFolder { config, files: ShardedFiles::open(dir)? })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.files.dir()
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether config.json says that the weights are quantised.
    pub fn is_quantized(&self) -> bool {
        self.config.raw.get("quantization_config").is_some_and(|it| !it.is_null())
    }

    /// Its tensors.
    pub fn files(&self) -> &ShardedFiles {
        &self.files
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|it| it.1.bytes() as u64).sum()
    }

    /// Reads one tensor whole. Fails, naming it, if it is missing, of another shape than `shape`, or not finite.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (file, it) = self.files.get(name).ok_or_else(|| self.files.missing(name))?;
        let wrong = |message: String| Error::File { path: file.path().to_owned(), message };
        let Some(dtype) = DType::of_files(it.dtype).filter(|it| it.is_float()) else {
            return Err(wrong(match self.is_quantized() {
                true => {
                    format!("{name} is quantised; a matrix that is read as numbers must be stored as F32, F16 or BF16")
                }
                false => format!("{name} is stored as {}, expected F32, F16 or BF16", it.dtype),
            }));
        };
        if it.shape != shape {
            return Err(wrong(format!("{name} has shape {:?}, config.json asks for {shape:?}", it.shape)));
        }
        let tensor = Tensor::filled(shape, dtype, |bytes| file.read_part(it, 0, bytes))?;
        if !tensor.is_finite()? {
            return Err(wrong(format!(
                "{name} holds NaN or infinite values; the file is damaged, or was saved from a diverged run"
            )));
        }
        Ok(tensor)
    }
}
