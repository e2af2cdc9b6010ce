//! Writing a model as bitsandbytes stores it: quantised linear layers, everything else as it was.

use halfbyte_files::{TensorSpec, TensorWriter, write_atomic};
use halfbyte_frozen::{
    Format,
    bitsandbytes::{self, Part},
};
use halfbyte_models::{Model, ModelFolder};
use halfbyte_tensor::Tensor;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Collects a checkpoint's tensors and writes them at the end. They are held in few bits, so this is small.
pub(crate) struct QuantizedWriter {
    from: PathBuf,
    to: PathBuf,
    format: Format,
    parts: Vec<Part>,
}

impl QuantizedWriter {
    /// A checkpoint of the model in `folder`, to be written into the folder `to`.
    pub(crate) fn new(folder: &ModelFolder, to: &Path, format: Format) -> QuantizedWriter {
        QuantizedWriter { from: folder.dir().to_owned(), to: to.to_owned(), format, parts: Vec::new() }
    }

    /// Adds the `(out_features, in_features)` matrix of the linear layer at `path`, quantised.
    pub(crate) fn matrix(&mut self, path: &str, weight: &Tensor) -> halfbyte_frozen::Result<()> {
        self.parts.extend(bitsandbytes::parts(path, weight, self.format)?);
        Ok(())
    }

    /// Adds a tensor that stays as it was loaded.
    pub(crate) fn dense(&mut self, name: &str, weight: &Tensor) {
        let spec = TensorSpec::new(name, weight.dtype().in_files(), weight.shape());
        self.parts.push(Part { spec, bytes: weight.le_bytes().into_owned() });
    }

    /// Writes weights, configuration and tokenizer. `model` holds embeddings, norms and biases.
    pub(crate) fn finish(mut self, model: &dyn Model) -> anyhow::Result<()> {
        let (linears, weights) = model.parts();
        for weight in weights.into_iter().chain(linears.into_iter().filter_map(|it| it.bias())) {
            self.dense(weight.path(), &weight.value());
        }
        // Wide elements first, so that all are aligned.
        self.parts.sort_by(|a, b| (b.spec.dtype.size(), &a.spec.name).cmp(&(a.spec.dtype.size(), &b.spec.name)));
        let specs = self.parts.iter().map(|it| it.spec.clone()).collect();
        let mut writer = TensorWriter::create(&self.to.join("model.safetensors"), specs)?;
        for it in &self.parts {
            writer.write(&it.spec.name, &it.bytes)?;
        }
        writer.finish()?;
        let mut config = model.config().raw.clone();
        config.insert("quantization_config".into(), bitsandbytes::quantization_config(self.format));
        write_atomic(&self.to.join("config.json"), format!("{:#}\n", Value::Object(config)).as_bytes())?;
        crate::save_model::copy_tokenizer(&self.from, &self.to)
    }
}
