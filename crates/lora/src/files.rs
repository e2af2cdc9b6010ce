//! Saving and loading adapters as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.

use crate::{
    Bias, EmbeddingLora, Error, LoraConfig, LoraLayer, Modules, Result, Role, Selection, Tie, Weight,
    attach::{bias_trains, magnitude, magnitude_key, names_embedding, refuse_head},
    parse_adapter_config, render_adapter_config,
};
use halfbyte_autograd::Param;
use halfbyte_tensor::{DType, Device, Tensor, bf16, f16};
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

/// Writes the adapter `name` of a model into `dir`, which must exist: the trained tensors alone, in f32.
pub fn save_adapter(dir: &Path, modules: &Modules<'_>, config: &LoraConfig, name: &str) -> Result<()> {
    let mut found: Vec<(String, Param)> = Vec::new();
    let mut adapted = Vec::new();
    let mut push = |key: String, param: &Param| found.push((format!("{PREFIX}{key}"), param.clone()));
    for linear in &modules.linears {
        let path = linear.path();
        if let Some(layer) = linear.lora(name) {
            push(format!("{path}.lora_A.weight"), &layer.a);
            push(format!("{path}.lora_B.weight"), &layer.b);
            if let Some(param) = &layer.magnitude {
                push(magnitude_key(path), param);
            }
            adapted.push(path.to_owned());
        }
        if let Some(param) = linear.full(name) {
            push(format!("{path}.weight"), param);
        }
        if let Some(param) = linear.bias().and_then(|it| it.copy_of(name)) {
            let inside = if linear.lora(name).is_some() { ".base_layer" } else { "" };
            push(format!("{path}{inside}.bias"), param);
        }
    }
    let mut transposed = Vec::new();
    for weight in &modules.weights {
        if let Some(EmbeddingLora { a, b, .. }) = weight.update_of(name) {
            let (key_a, key_b) = embedding_keys(weight.module());
            push(key_b, b);
            transposed.push((format!("{PREFIX}{key_a}"), transpose(&on_host(a)?)));
            adapted.push(weight.module().to_owned());
        }
        if let Some(param) = weight.copy_of(name) {
            push(weight.path().to_owned(), param);
            // PEFT asks for the tied head by its own name, too.
            if let Some(tie) =
                modules.tied.as_ref().filter(|it| it.embedding == weight.module() && !weight.is_untied(name))
            {
                push(tie.head_weight(), param);
            }
        }
    }
    let values = found.into_iter().map(|(key, param)| Ok((key, on_host(&param)?)));
    let mut tensors: Vec<(String, Tensor)> = values.collect::<Result<_>>()?;
    tensors.extend(transposed);
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    write_atomic(&dir.join(WEIGHTS), &serialise(&tensors, &dir.join(WEIGHTS))?)?;
    write_atomic(&dir.join(CONFIG), render_adapter_config(config, &adapted).as_bytes())
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

/// Puts a read adapter on a model under `name`, without making it active.
///
/// As in PEFT, target modules that this model lacks are ignored as long as some match; a tensor that is missing, left
/// over or of another shape is an error that names it.
pub fn load_adapter(modules: &mut Modules<'_>, file: AdapterFile, name: &str) -> Result<()> {
    let AdapterFile { dir, config, mut tensors, .. } = file;
    let path = dir.join(WEIGHTS);
    let wrong = |message: String| Error::File { path: path.clone(), message };
    let head = modules.head.clone();
    let selection = Selection::new(&config, head.as_deref())?;
    let mut missing = Vec::new();
    let mut found = 0;
    for (site, linear) in modules.linears.iter_mut().enumerate() {
        let at = linear.path().to_owned();
        let (out, inner) = linear.dims();
        if selection.saves(&at) {
            let value = take(&mut tensors, &format!("{at}.weight"), &[out, inner], &mut missing).map_err(wrong)?;
            linear.add_full(name, value);
        } else if selection.adapts(&at) {
            refuse_head(head.as_deref(), &at).map_err(|e| wrong(e.to_string()))?;
            let (rank, scaling) = selection.rank_and_scaling(&at);
            let (key_a, key_b) = (format!("{at}.lora_A.weight"), format!("{at}.lora_B.weight"));
            let a = take(&mut tensors, &key_a, &[rank, inner], &mut missing).map_err(wrong)?;
            let b = take(&mut tensors, &key_b, &[out, rank], &mut missing).map_err(wrong)?;
            let m = match config.use_dora {
                true => take(&mut tensors, &magnitude_key(&at), &[out], &mut missing).map_err(wrong)?,
                false => None,
            };
            if let (Some(a), Some(b)) = (a, b) {
                let (a, b) = (Param::new(key_a, a), Param::new(key_b, b));
                let magnitude = m.map(|it| magnitude(&at, it.to_f32_vec()));
                let (dropout, site) = (config.lora_dropout, site as u64);
                linear.add_lora(name, LoraLayer { a, b, scaling, dropout, site, magnitude });
                found += 1;
            }
        }
        let wanted = bias_trains(&config, &selection, &at);
        if let Some(bias) = linear.bias_mut() {
            let keys = [format!("{at}.base_layer.bias"), format!("{at}.bias")];
            if let Some(value) = keys.iter().find_map(|key| tensors.remove(key)) {
                shape_is(&keys[1], &value, &[out]).map_err(wrong)?;
                bias.add_copy(name, Some(value));
            } else if wanted {
                missing.push(keys[1].clone());
            }
        }
    }
    for weight in &mut modules.weights {
        let wanted = selection.saves(weight.module()) || (config.bias == Bias::All && weight.role() == Role::Bias);
        let tie = modules.tied.as_ref();
        let tied = tie.filter(|it| it.embedding == weight.module());
        if !selection.saves(weight.module())
            && names_embedding(&config, &selection, weight).map_err(|e| wrong(e.to_string()))?
        {
            let (rank, scaling) = selection.rank_and_scaling(weight.module());
            let (key_a, key_b) = embedding_keys(weight.module());
            let (vocab, channels) = (weight.value().rows(), weight.value().cols());
            let a = take(&mut tensors, &key_a, &[rank, vocab], &mut missing).map_err(wrong)?;
            let b = take(&mut tensors, &key_b, &[channels, rank], &mut missing).map_err(wrong)?;
            if let (Some(a), Some(b)) = (a, b) {
                let (a, b) = (Param::new(key_a, transpose(&a)), Param::new(key_b, b));
                weight.add_update(name, EmbeddingLora { a, b, scaling });
                found += 1;
            }
            drop_untouched_copies(&mut tensors, weight, tie).map_err(wrong)?;
        }
        if let Some(value) = tensors.remove(weight.path()) {
            shape_is(weight.path(), &value, weight.value().shape()).map_err(wrong)?;
            weight.add_copy(name, Some(value));
            match tied {
                Some(tie) if config.ensure_weight_tying => drop(tensors.remove(&tie.head_weight())),
                Some(_) => weight.untie(name),
                None => {}
            }
        } else if wanted {
            missing.push(weight.path().to_owned());
        }
    }
    if found == 0 && missing.is_empty() {
        return Err(wrong(format!(
            "none of its target modules {} exists in this model; was it trained on another architecture?",
            config.target_modules
        )));
    }
    report(missing, "lacks the tensors").map_err(wrong)?;
    report(tensors.into_keys().collect(), "has tensors that belong to no module of this model:").map_err(wrong)
}

/// A parameter's value in host memory, in f32.
fn on_host(param: &Param) -> Result<Tensor> {
    Ok(param.value().to_device(&Device::Cpu).map_err(halfbyte_autograd::Error::from)?.to_dtype(DType::F32))
}

fn embedding_keys(module: &str) -> (String, String) {
    (format!("{module}.lora_embedding_A"), format!("{module}.lora_embedding_B"))
}

/// PEFT puts the embedding itself beside its update, and the head with it, in case that the vocabulary was resized.
/// Where they are the base's own they say nothing new; other ones belong to a base that is not this one.
fn drop_untouched_copies(
    tensors: &mut BTreeMap<String, Tensor>,
    weight: &Weight,
    tie: Option<&Tie>,
) -> std::result::Result<(), String> {
    let base = weight.value();
    let own = format!("{}.base_layer.weight", weight.module());
    for key in [own].into_iter().chain(tie.map(Tie::head_weight)) {
        let Some(copy) = tensors.remove(&key) else { continue };
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

fn transpose(matrix: &Tensor) -> Tensor {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let values = matrix.data::<f32>();
    let turned: Vec<f32> = (0..cols).flat_map(|j| (0..rows).map(move |i| values[i * cols + j])).collect();
    Tensor::from_vec(&[cols, rows], turned)
}

fn report(names: Vec<String>, what: &str) -> std::result::Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let more = if names.len() > 6 { format!(" and {} more", names.len() - 6) } else { String::new() };
    Err(format!("{what} {}{more}", names[..names.len().min(6)].join(", ")))
}

fn take(
    tensors: &mut BTreeMap<String, Tensor>,
    key: &str,
    shape: &[usize],
    missing: &mut Vec<String>,
) -> std::result::Result<Option<Tensor>, String> {
    match tensors.remove(key) {
        Some(value) => shape_is(key, &value, shape).map(|()| Some(value)),
        None => {
            missing.push(key.to_owned());
            Ok(None)
        }
    }
}

fn shape_is(key: &str, value: &Tensor, shape: &[usize]) -> std::result::Result<(), String> {
    if value.shape() == shape {
        return Ok(());
    }
    Err(format!("{key} has shape {:?}, this model and adapter_config.json ask for {shape:?}", value.shape()))
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
