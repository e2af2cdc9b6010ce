//! Saving and loading adapters as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.

use crate::{
    Adapter, Error, LoraConfig, Modules, Result, Selection, Tie, Weight, parse_adapter_config,
    places::{copied_bias, copied_weight, place, places, tie_of},
    render_adapter_config,
    variants::{self, Copied, FileNumbers, Numbers, Place, What},
};
use halfbyte_tensor::{Tensor, bf16, f16};
use safetensors::{SafeTensors, tensor::TensorView};
use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::{Path, PathBuf},
};

/// The name of the weights.
const WEIGHTS: &str = "adapter_model.safetensors";
/// The name of the configuration.
const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";

/// An adapter's files, read and checked, before they are put on a model.
#[derive(Debug)]
pub struct AdapterFile {
    /// The folder.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: LoraConfig,
    /// Keys of the configuration that are not known and were ignored.
    pub unknown_keys: Vec<String>,
    /// Tensors (f32) by name, without PEFT's prefix.
    tensors: BTreeMap<String, Tensor>,
}

/// Writes a file so that a reader sees the old contents or the new, never a part: to a temporary file beside it, synced,
/// then renamed.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    let failed = |source: std::io::Error| Error::Io { path: path.to_owned(), source };
    let dir = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir).map_err(failed)?;
    file.write_all(contents).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    // A temporary file is private to its owner; the result has the usual permissions.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
    }
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Writes an adapter into `dir`, which must exist: the trained tensors alone, in f32.
pub fn save_adapter(dir: &Path, adapter: &Adapter) -> Result<()> {
    let (mut tensors, mut adapted) = (Vec::new(), Vec::new());
    for (path, update) in adapter.updates() {
        tensors.extend(update.stored()?.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value)));
        if update.copy().is_none() {
            adapted.push(path.to_owned());
        }
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    write_atomic(&dir.join(WEIGHTS), &serialise(&tensors, &dir.join(WEIGHTS))?)?;
    write_atomic(&dir.join(CONFIG), render_adapter_config(&adapter.config, &adapted).as_bytes())
}

/// Reads and checks an adapter's files.
pub fn read_adapter(dir: &Path) -> Result<AdapterFile> {
    let config_path = dir.join(CONFIG);
    let text =
        std::fs::read_to_string(&config_path).map_err(|source| Error::Io { path: config_path.clone(), source })?;
    let (config, unknown_keys) = parse_adapter_config(&config_path, &text)?;
    let path = dir.join(WEIGHTS);
    if !path.exists() && dir.join("adapter_model.bin").exists() {
        let message = "is missing; the adapter is a pickle (adapter_model.bin), which can run code when it is read: save it as safetensors with PEFT".into();
        return Err(Error::File { path, message });
    }
    let bytes = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let tensors = deserialise(&bytes, &path)?;
    Ok(AdapterFile { dir: dir.to_owned(), config, unknown_keys, tensors })
}

/// A read adapter for a model, under `name`. The model is left as it is, so a file that is refused leaves nothing behind.
///
/// As in PEFT, target modules that this model lacks are ignored as long as some match; a tensor that is missing, left
/// over or of another shape is an error that names it.
pub fn load_adapter(modules: &Modules<'_>, file: AdapterFile, name: &str) -> Result<Adapter> {
    let AdapterFile { dir, config, tensors, .. } = file;
    let path = dir.join(WEIGHTS);
    let wrong = |message: String| Error::File { path: path.clone(), message };
    let selection = Selection::new(&config, modules.head.as_deref())?;
    let mut places = places(modules, &config, &selection).map_err(|e| wrong(e.to_string()))?;
    surplus_copies(modules, &tensors, (&config, &selection), &mut places);
    // In the model's order, a bias after its matrix.
    places.sort_by_key(Place::order);
    let mut numbers = Numbers::File(FileNumbers { path: path.clone(), tensors, missing: Vec::new() });
    let (mut updates, mut unties_head) = (Vec::new(), false);
    for mut place in places {
        if let What::Copy(copied) = &mut place.what
            && let Some(tie) = tie_of(modules, &copied.name)
        {
            unties_head |= !config.ensure_weight_tying;
            if config.ensure_weight_tying {
                copied.stored_as.push(tie.head_weight());
                numbers.discard(&tie.head_weight());
            }
        }
        let update = variants::begin(&place, &mut numbers)?;
        if let What::Embedding(weight) = &place.what {
            numbers.drop_untouched_copies(weight, modules.tied.as_ref()).map_err(wrong)?;
        }
        updates.push((place.path, place.role, update));
    }
    let Numbers::File(FileNumbers { tensors, missing, .. }) = numbers else {
        unreachable!("the numbers of a file stay those of a file")
    };
    if missing.is_empty() && updates.iter().all(|it| it.2.copy().is_some()) {
        return Err(wrong(format!(
            "none of its target modules {} exists in this model; was it trained on another architecture?",
            config.target_modules
        )));
    }
    report(missing, "lacks the tensors").map_err(wrong)?;
    report(tensors.into_keys().collect(), "has tensors that belong to no module of this model:").map_err(wrong)?;
    let mut adapter = Adapter::new(name, config, updates);
    adapter.unties_head = unties_head;
    Ok(adapter)
}

/// A file may hold copies of biases and other weights that its configuration does not name; they count all the same.
fn surplus_copies<'a>(
    modules: &'a Modules<'_>,
    tensors: &BTreeMap<String, Tensor>,
    (config, selection): (&'a LoraConfig, &Selection<'_>),
    places: &mut Vec<Place<'a>>,
) {
    let mut add = |path: &str, index: usize, copied: Copied<'a>| {
        let named = places.iter().any(|it| it.path == path);
        if !named && copied.read_as.iter().any(|it| tensors.contains_key(it)) {
            places.push(place(path, index, What::Copy(copied), (config, selection)));
        }
    };
    for (index, linear) in modules.linears.iter().enumerate() {
        if let Some(bias) = linear.bias() {
            add(bias.path(), index, copied_bias(linear, bias, selection.adapts(linear.path())));
        }
    }
    for (index, weight) in modules.weights.iter().enumerate() {
        add(weight.path(), index, copied_weight(weight));
    }
}

impl Numbers {
    fn discard(&mut self, name: &str) -> Option<Tensor> {
        let Numbers::File(file) = self else { return None };
        file.tensors.remove(name)
    }

    /// PEFT puts the embedding itself beside its update, and the head with it, in case that the vocabulary was resized.
    /// Where they are the base's own they say nothing new; other ones belong to a base that is not this one.
    fn drop_untouched_copies(&mut self, weight: &Weight, tie: Option<&Tie>) -> std::result::Result<(), String> {
        let base = weight.value();
        let own = format!("{}.base_layer.weight", weight.module());
        for key in [own].into_iter().chain(tie.map(Tie::head_weight)) {
            let Some(copy) = self.discard(&key) else { continue };
            let same = copy.shape() == base.shape() && copy.to_dtype(base.dtype()).to_f32_vec() == base.to_f32_vec();
            if !same {
                return Err(format!(
                    "{key} is not the embedding of this model; the adapter was trained on a base with another one, perhaps of another vocabulary size {:?}",
                    copy.shape()
                ));
            }
        }
        Ok(())
    }
}

fn report(names: Vec<String>, what: &str) -> std::result::Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let more = if names.len() > 6 { format!(" and {} more", names.len() - 6) } else { String::new() };
    Err(format!("{what} {}{more}", names[..names.len().min(6)].join(", ")))
}

fn serialise(tensors: &[(String, Tensor)], path: &Path) -> Result<Vec<u8>> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, it)| it.data::<f32>().iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let wrong = |e: safetensors::SafeTensorError| Error::File { path: path.to_owned(), message: e.to_string() };
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, tensor), bytes) in tensors.iter().zip(&bytes) {
        let view = TensorView::new(safetensors::Dtype::F32, tensor.shape().to_vec(), bytes).map_err(wrong)?;
        views.push((name.as_str(), view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(wrong)
}

fn deserialise(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let wrong = |message: String| Error::File { path: path.to_owned(), message };
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("not a whole safetensors file: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = widen(&view)
            .ok_or_else(|| wrong(format!("{name} has dtype {:?}, expected F32, F16 or BF16", view.dtype())))?;
        // Old files carry the adapter's name inside the key.
        let key = name.strip_prefix(PREFIX).unwrap_or(&name).replace(".default.", ".");
        tensors.insert(key, Tensor::from_vec(view.shape(), data));
    }
    Ok(tensors)
}

fn widen(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let pair = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let data = view.data();
    Some(match view.dtype() {
        safetensors::Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        safetensors::Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_bits(pair(b)).to_f32()).collect(),
        safetensors::Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_bits(pair(b)).to_f32()).collect(),
        _ => return None,
    })
}
