//! Loading a base model, its tokenizer and adapters, for every command alike.

use crate::{
    base_record::BaseRecord, cli::DeviceArg, console, failure::user_error, fingerprint::Fingerprint, places, vocabulary,
};
use halfbyte_cuda::Gpu;
use halfbyte_data::Tokenizer;
use halfbyte_frozen::{
    Format,
    bitsandbytes::{self, Skipped},
};
use halfbyte_lora::{Adapter, AdapterFile, Prepare, Role, Takeover, read_adapter};
use halfbyte_models::{Loading, Model, ModelFolder, loaded_dtype, spec};
use halfbyte_ops::WeightFormat;
use halfbyte_tensor::{Device, Tensor};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// The name that stands for the base without an adapter.
pub(crate) const NO_ADAPTER: &str = "none";

/// A model folder with its tokenizer, checked against each other.
pub(crate) struct BaseModel {
    pub(crate) folder: ModelFolder,
    pub(crate) tokenizer: Tokenizer,
    /// Where the tokenizer lies: beside the model, or beside an adapter that brings its own.
    pub(crate) tokenizer_dir: PathBuf,
}

impl BaseModel {
    /// The folders that what is beside the weights comes from, each once; of the last, what both have.
    pub(crate) fn folders(&self) -> Vec<&Path> {
        let brought = Some(self.tokenizer_dir.as_path()).filter(|it| *it != self.folder.dir());
        [self.folder.dir()].into_iter().chain(brought).collect()
    }
}

/// Opens a model without loading its weights, for use with adapters by name or with none.
pub(crate) fn open(named: &Path, adapters: &[(String, PathBuf)]) -> anyhow::Result<BaseModel> {
    let dir = places::model(named)?.path;
    let mut folder = ModelFolder::open(&dir)?;
    vocabulary::resize(&mut folder, adapters)?;
    let (mut tokenizer, tokenizer_dir) = vocabulary::tokenizer(&dir, adapters)?;
    tokenizer.check_vocab(folder.config().vocab_size)?;
    folder.config().notes.iter().chain(tokenizer.notes()).for_each(|it| console::warn(it));
    Ok(BaseModel { folder, tokenizer, tokenizer_dir })
}

/// Loads the weights onto a device, every linear layer in `format` unless the checkpoint is quantised already, with a
/// progress bar.
///
/// `prepare` sees each matrix before, and may change it.
pub(crate) fn load(
    folder: &ModelFolder,
    format: Format,
    device: &Device,
    prepare: Option<&mut dyn Prepare>,
) -> anyhow::Result<Box<dyn Model>> {
    let stored = bitsandbytes::Stored { format, skipped: skipped(folder) };
    if folder.is_quantized() {
        warn_of_dense(folder, &stored.skipped)?;
    }
    let format: &dyn WeightFormat = if folder.is_quantized() { &stored } else { &format };
    // Borrowed no longer than the format.
    let prepare = prepare.map(|it| &mut *it as &mut dyn Prepare);
    load_with(folder, Loading::Frozen { format, prepare }, device)
}

/// The modules that a folder of quantised weights keeps dense.
pub(crate) fn skipped(folder: &ModelFolder) -> Skipped {
    folder.config().raw.get("quantization_config").map_or_else(Skipped::default, Skipped::of)
}

/// Linear layers that are dense in a quantised folder without being named there are quantised: transformers would, too.
fn warn_of_dense(folder: &ModelFolder, skipped: &Skipped) -> anyhow::Result<()> {
    let files = folder.files();
    let is_dense = |name: &str| {
        files.get(name).is_some_and(|it| loaded_dtype(it.1.dtype).is_some()) && !bitsandbytes::holds_codes(files, name)
    };
    let linears = spec(folder.config())?.into_iter().filter(|it| it.role == Role::Linear && is_dense(&it.name));
    let names: Vec<String> = linears.map(|it| it.name.trim_end_matches(".weight").to_owned()).collect();
    let odd: Vec<&String> = names.iter().filter(|it| !skipped.contains(it)).collect();
    if let Some(first) = odd.first() {
        console::warn(&format!(
            "{} layers of this quantised model are stored dense, {first} among them, and quantization_config does not say so (llm_int8_skip_modules): they are quantised like the others",
            odd.len()
        ));
    }
    Ok(())
}

/// Loads the weights for training all of them.
pub(crate) fn load_trainable(folder: &ModelFolder, device: &Device) -> anyhow::Result<Box<dyn Model>> {
    if folder.is_quantized() {
        return Err(user_error(format!(
            "{}: --method full trains all weights, but these are quantised (quantization_config in config.json); train an adapter, or take the original weights",
            folder.dir().display()
        )));
    }
    load_with(folder, Loading::Trainable, device)
}

fn load_with(folder: &ModelFolder, loading: Loading<'_>, device: &Device) -> anyhow::Result<Box<dyn Model>> {
    let bar = console::byte_bar(folder.bytes(), "loading");
    let model = folder.load(loading, device, &mut |bytes| bar.inc(bytes as u64))?;
    bar.finish_and_clear();
    Ok(model)
}

/// `NAME=ADAPTER`, or a folder or name on the hub that lends its own. A `=` inside a path, as in `runs/lr=2e-4`, names nothing, nor
/// does one in a path that is not UTF-8.
pub(crate) fn parse_adapter(given: &OsStr) -> anyhow::Result<(String, PathBuf)> {
    let path = Path::new(given);
    let named = given.to_str().and_then(|it| it.split_once('='));
    if let Some((name, dir)) = named.filter(|it| !it.0.contains(['/', '\\']) && !path.is_dir()) {
        if name.is_empty() || dir.is_empty() {
            return Err(user_error(format!("--adapter {}: expected NAME=DIR", path.display())));
        }
        return Ok((name.to_owned(), places::adapter(Path::new(dir))?));
    }
    let name = path.file_name().map_or_else(|| "default".to_owned(), |it| it.to_string_lossy().into_owned());
    Ok((name, places::adapter(path)?))
}

/// Adapters from disk that wait for their base: they are read before it, since one may have to see the base's matrices before
/// these are stored in few bits.
pub(crate) struct Waiting(Vec<Read>);

struct Read {
    name: String,
    file: AdapterFile,
    takeover: Option<Takeover>,
}

impl Waiting {
    /// Reads adapters by name, each of which may be had once.
    pub(crate) fn read(named: &[(String, PathBuf)], folder: &ModelFolder, base: BaseRecord) -> anyhow::Result<Waiting> {
        let weights = if named.is_empty() { None } else { Fingerprint::of_base(folder)? };
        let mut found = Vec::with_capacity(named.len());
        for (i, (name, dir)) in named.iter().enumerate() {
            if name == NO_ADAPTER || named[..i].iter().any(|it| it.0 == *name) {
                return Err(user_error(format!(
                    "--adapter: the name `{name}` is taken; write NAME=DIR with another name"
                )));
            }
            base.compare(dir, (folder, weights))?;
            let file = read_adapter(dir)?;
            file.notes.iter().for_each(|it| console::warn(&format!("{}: {it}", dir.display())));
            let takeover = Takeover::of_file(&file, head(folder)?.as_deref())?;
            if takeover.as_ref().is_some_and(|it| !it.repeats()) {
                console::warn(&format!(
                    "{}: began with a part of its base that a random search found, and another search finds another one: its loss may differ from what it was trained to. PEFT converts it with save_pretrained(path_initial_model_for_weight_conversion=...)",
                    dir.display()
                ));
            }
            found.push(Read { name: name.clone(), file, takeover });
        }
        Ok(Waiting(found))
    }

    /// One that was trained on some rows of a table alone, if there is one.
    pub(crate) fn of_token_rows(&self) -> Option<&str> {
        self.0.iter().find(|it| it.file.trains_token_rows()).map(|it| it.name.as_str())
    }

    /// The names of the adapters.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|it| it.name.as_str())
    }

    /// Their settings.
    pub(crate) fn configs(&self) -> impl Iterator<Item = &halfbyte_lora::LoraConfig> {
        self.0.iter().map(|it| &it.file.config)
    }

    /// The adapters for the base that was loaded with these waiting, where it computes.
    pub(crate) fn adapters(self, model: &mut dyn Model, device: &Device) -> anyhow::Result<Vec<Adapter>> {
        let mut found = Vec::with_capacity(self.0.len());
        for Read { name, file, takeover } in self.0 {
            let adapter = file.load_beside(takeover.as_ref(), &model.modules(), &name)?;
            adapter.to_device(device)?;
            found.push(adapter);
        }
        Ok(found)
    }
}

impl Prepare for Waiting {
    fn wants(&self, path: &str) -> bool {
        self.0.iter().flat_map(|it| &it.takeover).any(|it| it.wants(path))
    }

    fn replace(&mut self, path: &str, weight: Tensor) -> halfbyte_lora::Result<Tensor> {
        self.0.iter_mut().flat_map(|it| &mut it.takeover).try_fold(weight, |weight, it| it.replace(path, weight))
    }
}

/// Path of the output head, if it has a matrix of its own.
pub(crate) fn head(folder: &ModelFolder) -> anyhow::Result<Option<String>> {
    let head = spec(folder.config())?.into_iter().find(|it| it.role == Role::Head);
    Ok(head.map(|it| it.name.trim_end_matches(".weight").to_owned()))
}

/// Settles where to compute: on the GPU that was named, or on the first if there is one and it was not refused. Asking for CUDA
/// where there is none says what is missing, and for a GPU that is not there, which ones are.
pub(crate) fn device(asked: DeviceArg) -> anyhow::Result<Device> {
    let device = match asked {
        DeviceArg::Cpu => Device::Cpu,
        DeviceArg::Auto if halfbyte_cuda::probe().require().is_err() => Device::Cpu,
        DeviceArg::Auto => Device::Cuda(Gpu::open(0)?),
        DeviceArg::Cuda(n) => Device::Cuda(Gpu::open(n)?),
    };
    if let Device::Cuda(gpu) = &device {
        console::say(&format!("computing on {}", gpu.info()));
    }
    Ok(device)
}
