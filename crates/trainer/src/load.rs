//! Loading a base model, its tokenizer and adapters, for every command alike.

use crate::{
    cli::{DeviceArg, QuantArg, Switch},
    console,
    failure::user_error,
};
use anyhow::Context;
use clap::ValueEnum;
use halfbyte_data::{Columns, Tokenizer};
use halfbyte_frozen::Format;
use halfbyte_lora::{LoraConfig, load_adapter, read_adapter, write_atomic};
use halfbyte_models::{Loading, Model, ModelFolder};
use halfbyte_ops::FrozenMatrix;
use halfbyte_tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file beside an adapter that says what its base was kept as while it was trained.
const BASE_RECORD: &str = "halfbyte_base.json";

/// What the base was kept as while an adapter was trained: a merge has to happen onto the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BaseRecord {
    pub(crate) quant: QuantArg,
    pub(crate) double_quant: Switch,
    pub(crate) block_size: usize,
}

impl std::fmt::Display for BaseRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quant = self.quant.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
        match self.quant {
            QuantArg::None => f.write_str("loaded (quant none)"),
            QuantArg::Int8 => f.write_str(&quant),
            _ if self.double_quant == Switch::On => {
                write!(f, "{quant}, blocks of {}, doubly quantised", self.block_size)
            }
            _ => write!(f, "{quant}, blocks of {}", self.block_size),
        }
    }
}

impl BaseRecord {
    /// The record beside an adapter, if Halfbyte wrote it.
    pub(crate) fn read(adapter: &Path) -> anyhow::Result<Option<BaseRecord>> {
        let path = adapter.join(BASE_RECORD);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).map(Some).map_err(|e| user_error(format!("{}: {e}", path.display())))
    }

    /// Writes the record beside an adapter.
    pub(crate) fn write(&self, adapter: &Path) -> anyhow::Result<()> {
        Ok(write_atomic(&adapter.join(BASE_RECORD), serde_json::to_string_pretty(self)?.as_bytes())?)
    }

    /// The storage format.
    pub(crate) fn format(&self) -> Format {
        self.quant.format(self.double_quant == Switch::On, self.block_size)
    }

    /// Warns where an adapter was trained on a base that was kept in another way: its losses will differ from those it was trained to.
    pub(crate) fn compare(&self, adapter: &Path) -> anyhow::Result<()> {
        let known = BaseRecord::read(adapter)?.filter(|it| it.format() != self.format());
        if let Some(trained) = known {
            console::warn(&format!(
                "{} was trained on a base kept as {trained}, this one is {self}",
                adapter.display(),
            ));
        }
        Ok(())
    }

    /// From flags that may be absent: what is written beside the first adapter, else dense. `quant` alone means
    /// QLoRA's block size and double quantisation.
    pub(crate) fn resolve(
        quant: Option<QuantArg>,
        double_quant: Option<Switch>,
        block_size: Option<usize>,
        adapter: Option<&Path>,
    ) -> anyhow::Result<BaseRecord> {
        let recorded = adapter.map(BaseRecord::read).transpose()?.flatten();
        let fallback =
            recorded.unwrap_or(BaseRecord { quant: QuantArg::None, double_quant: Switch::On, block_size: 64 });
        Ok(BaseRecord {
            quant: quant.unwrap_or(fallback.quant),
            double_quant: double_quant.unwrap_or(fallback.double_quant),
            block_size: block_size.unwrap_or(fallback.block_size),
        })
    }
}

/// A model folder with its tokenizer, checked against each other.
pub(crate) struct BaseModel {
    pub(crate) folder: ModelFolder,
    pub(crate) tokenizer: Tokenizer,
}

/// Opens a folder without loading its weights.
pub(crate) fn open(dir: &Path) -> anyhow::Result<BaseModel> {
    let folder = ModelFolder::open(dir)?;
    let tokenizer = Tokenizer::load(dir)?;
    tokenizer.check_vocab(folder.config().vocab_size)?;
    folder.config().notes.iter().for_each(|it| console::warn(it));
    Ok(BaseModel { folder, tokenizer })
}

/// Loads the weights, every linear layer in `format`, with a progress bar.
pub(crate) fn load(folder: &ModelFolder, format: Format) -> anyhow::Result<Box<dyn Model>> {
    let store = |format: Format| {
        move |_: &str, weight: Tensor| -> Result<Arc<dyn FrozenMatrix>, String> {
            format.freeze(weight).map_err(|e| e.to_string())
        }
    };
    let (quantise, dense) = (store(format), store(Format::DENSE));
    load_with(folder, Loading::Frozen { quantise: &quantise, dense: &dense })
}

/// Loads the weights for training all of them.
pub(crate) fn load_trainable(folder: &ModelFolder) -> anyhow::Result<Box<dyn Model>> {
    load_with(folder, Loading::Trainable)
}

fn load_with(folder: &ModelFolder, loading: Loading<'_>) -> anyhow::Result<Box<dyn Model>> {
    let total: usize = folder.tensors().values().map(|it| it.shape.iter().product::<usize>() * it.dtype.size()).sum();
    let bar = console::byte_bar(total as u64, "loading");
    let model = folder.load(loading, &mut |bytes| bar.inc(bytes as u64))?;
    bar.finish_and_clear();
    Ok(model)
}

/// `NAME=DIR`, or a folder that lends its own name. A `=` inside a path, as in `runs/lr=2e-4`, names nothing.
pub(crate) fn parse_adapter(text: &str) -> anyhow::Result<(String, PathBuf)> {
    let named = text.split_once('=').filter(|it| !it.0.contains(['/', '\\']) && !Path::new(text).is_dir());
    if let Some((name, dir)) = named {
        if name.is_empty() || dir.is_empty() {
            return Err(user_error(format!("--adapter {text}: expected NAME=DIR")));
        }
        return Ok((name.to_owned(), dir.into()));
    }
    let dir = PathBuf::from(text);
    let name = dir.file_name().map_or_else(|| "default".to_owned(), |it| it.to_string_lossy().into_owned());
    Ok((name, dir))
}

/// Puts an adapter from disk on a model, inactive, and gives its configuration.
pub(crate) fn add_adapter(
    model: &mut dyn Model,
    dir: &Path,
    name: &str,
    base: BaseRecord,
) -> anyhow::Result<LoraConfig> {
    base.compare(dir)?;
    let file = read_adapter(dir)?;
    if !file.unknown_keys.is_empty() {
        console::warn(&format!("{}: unknown keys ignored: {}", dir.display(), file.unknown_keys.join(", ")));
    }
    let config = file.config.clone();
    load_adapter(&mut model.modules(), file, name)?;
    Ok(config)
}

/// The column that was named; else `text` if there is one, else instruction rows. If neither is there, reading fails with
/// a list of what is.
pub(crate) fn columns(path: &Path, named: Option<&str>) -> anyhow::Result<Columns> {
    if let Some(name) = named {
        return Ok(Columns::Text(name.to_owned()));
    }
    let names: Vec<String> = halfbyte_data::columns(path)?.into_iter().map(|it| it.name).collect();
    let has = |name: &str| names.iter().any(|it| it == name);
    if !has("text") && has("instruction") && has("output") {
        let input = has("input").then(|| "input".to_owned());
        return Ok(Columns::Instruction { instruction: "instruction".into(), input, output: "output".into() });
    }
    Ok(Columns::Text("text".into()))
}

/// Settles where to compute. Asking for CUDA where there is none says what is missing.
pub(crate) fn check_device(device: DeviceArg) -> anyhow::Result<()> {
    if device == DeviceArg::Cuda {
        halfbyte_cuda::probe().require()?;
        return Err(user_error(
            "--device cuda: there is a GPU, but this version computes on the CPU only; use --device cpu",
        ));
    }
    Ok(())
}
