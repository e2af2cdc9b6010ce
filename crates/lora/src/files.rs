//! Saving and loading adapters as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.

use crate::{
    Adapter, AdapterConfig, Error, LoraConfig, Modules, Result, Selection, Takeover, Tie, TokenRows, Weight, layouts,
    older, parse_adapter_config,
    places::{copied_bias, copied_matrix, copied_weight, place, places, tie_of},
    render_adapter_config, token_rows,
    variants::{self, Copied, FileNumbers, Numbers, Part, Place, What},
};
use halfbyte_files::{TensorFile, TensorSpec, TensorWriter, read_text, write_atomic};
use halfbyte_tensor::{DType, Tensor};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The name of the weights.
const WEIGHTS: &str = "adapter_model.safetensors";
/// The name of the configuration.
const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";
/// How the name of a module's matrix goes on after the module's.
pub(crate) const WEIGHT: &str = ".weight";

/// An adapter's files, read and checked, before they are put on a model.
#[derive(Debug)]
pub struct AdapterFile {
    /// The folder.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: LoraConfig,
    /// Things a user should know, such as keys of the configuration that are not known.
    pub notes: Vec<String>,
    /// Rows of tables that were trained, by the names of the tables.
    token_rows: TokenRows,
    /// Tensors (f32) by name, without PEFT's prefix.
    tensors: BTreeMap<String, Tensor>,
}

/// Writes an adapter into `dir`, which must exist: the trained tensors alone, in f32. The configuration, by which a folder is
/// known as an adapter's, is written last.
///
/// # Errors
/// A tensor that holds NaN or infinity ([`Error::NotFinite`]), with which nothing is written; a file that cannot be written.
pub fn save_adapter(dir: &Path, adapter: &Adapter) -> Result<()> {
    let (mut tensors, mut adapted) = (Vec::new(), Vec::new());
    for (path, update) in adapter.updates() {
        tensors.extend(update.stored()?.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value)));
        if update.copy().is_none() {
            adapted.push(path.to_owned());
        }
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, it) in &tensors {
        if !it.is_finite().map_err(halfbyte_autograd::Error::from)? {
            return Err(Error::NotFinite { name: name.clone() });
        }
    }
    let config = &adapter.config;
    let written = if config.init_lora_weights.is_some() { config.on_the_whole_base() } else { config.clone() };
    write_tensors(&dir.join(WEIGHTS), &tensors)?;
    Ok(write_atomic(&dir.join(CONFIG), render_adapter_config(&written, &adapted).as_bytes())?)
}

/// Reads and checks an adapter's files.
pub fn read_adapter(dir: &Path) -> Result<AdapterFile> {
    let config_path = dir.join(CONFIG);
    if !config_path.exists() {
        return Err(Error::File { path: config_path, message: layouts::no_config(dir, CONFIG) });
    }
    let text = read_text(&config_path)?;
    let AdapterConfig { lora: config, token_rows, notes } = parse_adapter_config(&config_path, &text)?;
    let tensors = read_tensors(&TensorFile::open(&weights(dir))?)?;
    Ok(AdapterFile { dir: dir.to_owned(), config, notes, token_rows, tensors })
}

/// The rows of a module's own matrix in an adapter's file, of which only the header is read; none where the file holds no such matrix.
pub fn stored_rows(dir: &Path, module: &str) -> Result<Option<usize>> {
    let file = TensorFile::open(&weights(dir))?;
    let wanted = format!("{module}{WEIGHT}");
    Ok(file.tensors().iter().find(|it| key(it.0) == wanted).and_then(|it| it.1.shape.first().copied()))
}

/// The file of an adapter's weights.
fn weights(dir: &Path) -> PathBuf {
    let path = dir.join(WEIGHTS);
    // As PEFT wrote it before safetensors.
    let older = dir.join("adapter_model.bin");
    if !path.exists() && older.exists() { older } else { path }
}

/// The name of a tensor without PEFT's prefix, and without the adapter's own, which old files carry inside it.
fn key(name: &str) -> String {
    name.strip_prefix(PREFIX).unwrap_or(name).replace(".default.", ".")
}

/// A read adapter for a model, under `name`. The model is left as it is, so a file that is refused leaves nothing behind.
///
/// As in PEFT, target modules that this model lacks are ignored as long as some match; a tensor that is missing, left
/// over or of another shape is an error that names it.
///
/// One that began with a part of the base, and was saved relative to what was left (`init_lora_weights` says so), becomes an
/// update of the whole base, of twice the rank; see [`AdapterFile::load_beside`].
pub fn load_adapter(modules: &Modules<'_>, file: AdapterFile, name: &str) -> Result<Adapter> {
    file.load_beside(None, modules, name)
}

impl AdapterFile {
    /// Whether it was trained on some rows of a table alone, which it would not be if it went on here.
    pub fn trains_token_rows(&self) -> bool {
        !self.token_rows.is_empty()
    }

    /// An adapter made of the file, as by [`load_adapter`], which may have begun with a part of the base: `takeover` has then seen the
    /// base's matrices.
    pub fn load_beside(self, takeover: Option<&Takeover>, modules: &Modules<'_>, name: &str) -> Result<Adapter> {
        if let (Some(init), None) = (&self.config.init_lora_weights, takeover) {
            let message = format!(
                "init_lora_weights is {init}, so the adapter belongs to a base without a part of its weights; load the base through a Takeover, or convert the adapter in PEFT with save_pretrained(path_initial_model_for_weight_conversion=...)"
            );
            return Err(Error::File { path: self.dir.join(CONFIG), message });
        }
        load(modules, self, name, takeover.map(Takeover::parts))
    }
}

fn load(
    modules: &Modules<'_>,
    file: AdapterFile,
    name: &str,
    parts: Option<&BTreeMap<String, Part>>,
) -> Result<Adapter> {
    let AdapterFile { dir, config, token_rows, mut tensors, .. } = file;
    let config = config.resolved(modules)?;
    let path = dir.join(WEIGHTS);
    let wrong = |message: String| Error::File { path: path.clone(), message };
    token_rows::into_tables(modules, &token_rows, &mut tensors).map_err(wrong)?;
    let selection = Selection::new(&config, modules.head.as_deref())?;
    let mut places = places(modules, &config, &selection).map_err(|e| wrong(e.to_string()))?;
    older::rename(modules, &mut tensors);
    for it in &places {
        if let What::Stack(stack) = &it.what {
            older::into_stack(modules, stack, &mut tensors);
        }
    }
    unlisted_pair(modules, &selection, &mut tensors).map_err(wrong)?;
    surplus_copies(modules, &tensors, (&config, &selection), &mut places);
    // In the model's order, a bias after its matrix.
    places.sort_by_key(Place::order);
    let mut numbers = Numbers::File(FileNumbers { path: path.clone(), parts, tensors, missing: Vec::new() });
    let (mut updates, mut unties_head) = (Vec::new(), false);
    for mut place in places {
        if let What::Copy(copied) = &mut place.what
            && let Some(tie) = tie_of(modules, &copied.name)
        {
            // A copy that the configuration does not name is the base's own tensor, so to speak, and its head follows.
            let together = config.ensure_weight_tying || !selection.saves(&tie.embedding);
            unties_head |= !together;
            if together {
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
    let config = if parts.is_some() { config.on_the_whole_base() } else { config };
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
        if linear.member().is_none() {
            add(linear.module(), index, copied_matrix(linear));
        }
        if let Some(bias) = linear.bias() {
            add(bias.path(), index, copied_bias(linear, bias, selection.adapts(linear.path())));
        }
    }
    for (index, weight) in modules.weights.iter().enumerate() {
        add(weight.path(), index, copied_weight(weight));
    }
}

/// Embedding and head of a tied model may stand in a file without being named in its configuration (PEFT saves both where the
/// vocabulary may have been resized): they are one tensor, whichever name it has.
fn unlisted_pair(
    modules: &Modules<'_>,
    selection: &Selection<'_>,
    tensors: &mut BTreeMap<String, Tensor>,
) -> std::result::Result<(), String> {
    let Some(tie) = modules.tied.as_ref().filter(|it| !selection.saves(&it.head) && !selection.saves(&it.embedding))
    else {
        return Ok(());
    };
    let (embedding, head) = (format!("{}{WEIGHT}", tie.embedding), tie.head_weight());
    // Where the embedding has a low-rank update, its own copies are looked at together with that.
    let wrapped = format!("{}.base_layer{WEIGHT}", tie.embedding);
    if tensors.contains_key(&wrapped) {
        return Ok(());
    }
    let Some(own) = tensors.remove(&head) else { return Ok(()) };
    match tensors.get(&embedding) {
        Some(it) if it.shape() != own.shape() || it.data::<f32>() != own.data::<f32>() => Err(format!(
            "{head} and {embedding} differ, but this model ties them and modules_to_save names neither; which one is meant? Name it there"
        )),
        Some(_) => Ok(()),
        None => {
            tensors.insert(embedding, own);
            Ok(())
        }
    }
}

impl Numbers<'_> {
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
            let read = |it: &Tensor| it.read_f32().map_err(|e| format!("{key}: {e}"));
            let same = copy.shape() == base.shape() && read(&copy.to_dtype(base.dtype()))? == read(&base)?;
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

fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let spec = |(name, it): &(String, Tensor)| TensorSpec::new(name, it.dtype().in_files(), it.shape());
    let mut writer = TensorWriter::create(path, tensors.iter().map(spec).collect())?;
    for (name, it) in tensors {
        writer.write(name, &it.le_bytes())?;
    }
    Ok(writer.finish()?)
}

/// All tensors of a file, in f32, without PEFT's prefix.
fn read_tensors(file: &TensorFile) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, it) in file.tensors() {
        let Some(dtype) = DType::of_files(it.dtype).filter(|it| it.is_float()) else {
            let message = format!("{name} has dtype {}, expected F32, F16 or BF16", it.dtype);
            return Err(Error::File { path: file.path().to_owned(), message });
        };
        let value = Tensor::filled(&it.shape, dtype, |bytes| file.read_part(it, 0, bytes))?;
        if !value.is_finite().map_err(halfbyte_autograd::Error::from)? {
            let message =
                format!("{name} holds NaN or infinite values; the file is damaged, or was saved from a diverged run");
            return Err(Error::File { path: file.path().to_owned(), message });
        }
        tensors.insert(key(name), value.to_dtype(DType::F32));
    }
    Ok(tensors)
}
