//! A Hugging Face folder: its configuration and its weights, read tensor by tensor.

use crate::{Error, ModelConfig, Result, model::HEAD, names, registry::is_value_head};
use halfbyte_files::{Dtype, Placed, ShardedFiles, TensorFile, dangling, oddity, read_text};
use halfbyte_tensor::{DType, Device, Tensor, cuda};
use serde_json::Value;
use std::path::Path;

/// How `quant_method` calls the 4-bit format of gpt-oss's experts.
pub(crate) const MXFP4: &str = "mxfp4";

/// An opened model folder. All files of weights are checked for their headers and lengths when it is opened.
#[derive(Debug)]
pub struct ModelFolder {
    config: ModelConfig,
    files: ShardedFiles,
    /// Rows that embedding and output head have in the files, where the model is to have others.
    stored_vocab: Option<usize>,
}

impl ModelFolder {
    /// Opens a folder with a `config.json` and one or many safetensors files.
    pub fn open(dir: &Path) -> Result<ModelFolder> {
        let wrong = |path: &Path, message: String| Error::File { path: path.to_owned(), message };
        if !dir.is_dir() {
            return Err(wrong(dir, no_folder(dir)));
        }
        let config_path = dir.join("config.json");
        if !config_path.exists() {
            return Err(wrong(&config_path, format!("is missing; {}", no_config(dir))));
        }
        let text = read_text(&config_path)?;
        if let Some(hint) = oddity(text.as_bytes()) {
            return Err(wrong(&config_path, format!("is no configuration: {hint}")));
        }
        let mut config = ModelConfig::parse(&config_path, &text)?;
        let mut files = ShardedFiles::open(dir)?;
        files.rename(|name| names::canonical(&config, name));
        if files.iter().any(|(name, _)| is_value_head(name)) {
            config.notes.push(
                "the files hold a value head (v_head), which is no part of a language model and is left out".into(),
            );
        }
        let mut folder = ModelFolder { config, files, stored_vocab: None };
        folder.settle_tie()?;
        Ok(folder)
    }

    /// Whether output head and embedding are one is for the files to say, too, as in transformers 5: of two that differ each counts,
    /// and of a tied pair either is enough.
    fn settle_tie(&mut self) -> Result<()> {
        if !self.config.tie_word_embeddings {
            return Ok(());
        }
        let (embedding, head) = (names::embedding(&self.config), format!("{HEAD}.weight"));
        match (self.files.get(&embedding), self.files.get(&head)) {
            (None, Some(_)) => {
                self.files.rename(|name| (name == head).then(|| embedding.clone()));
                Ok(())
            }
            (Some((_, it)), Some((_, other))) => {
                let numbers = [it, other].iter().all(|it| loaded_dtype(it.dtype).is_some());
                if numbers && it.shape == other.shape && self.same(&embedding, &head, &it.shape.clone())? {
                    return Ok(());
                }
                self.config.untie();
                self.config.notes.push(format!(
                    "config.json ties the output head to the embedding, but the files hold another {head}, which is used, as in transformers 5"
                ));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether two tensors of one shape hold the same numbers. They may be the largest of a model, so those of one dtype are compared
    /// in pieces, up to the first that differs.
    fn same(&self, a: &str, b: &str, shape: &[usize]) -> Result<bool> {
        const PIECE: usize = 1 << 20;
        if let (Some((file, it)), Some((other_file, other))) = (self.files.get(a), self.files.get(b))
            && it.dtype == other.dtype
        {
            let (mut piece, mut other_piece) = (vec![0; PIECE], vec![0; PIECE]);
            for from in (0..it.bytes()).step_by(PIECE) {
                let len = PIECE.min(it.bytes() - from);
                file.read_part(it, from, &mut piece[..len])?;
                other_file.read_part(other, from, &mut other_piece[..len])?;
                if piece[..len] != other_piece[..len] {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let (a, b) = (self.read(a, shape)?, self.read(b, shape)?);
        Ok(a.to_dtype(DType::F32).le_bytes() == b.to_dtype(DType::F32).le_bytes())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.files.dir()
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether config.json says that the weights are quantised: linear layers, not experts alone (MXFP4).
    pub fn is_quantized(&self) -> bool {
        let method = |it: &Value| it.get("quant_method").and_then(Value::as_str) != Some(MXFP4);
        self.config.raw.get("quantization_config").is_some_and(|it| !it.is_null() && method(it))
    }

    /// Gives embedding and output head `rows` rows, as transformers' `resize_token_embeddings`: those beyond the stored ones are the
    /// mean of these.
    pub fn resize_vocabulary(&mut self, rows: usize) {
        self.stored_vocab.get_or_insert(self.config.vocab_size);
        self.config.resize_vocabulary(rows);
    }

    /// The shape that the files are to hold where a model asks for `shape`: another one of a table that was resized.
    pub fn stored_shape(&self, name: &str, shape: &[usize]) -> Vec<usize> {
        let is_table =
            || name == names::embedding(&self.config) || name.strip_prefix(HEAD).is_some_and(|it| it.starts_with('.'));
        match self.stored_vocab {
            Some(stored) if shape[0] == self.config.vocab_size && is_table() => [&[stored], &shape[1..]].concat(),
            _ => shape.to_vec(),
        }
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
        let stored = self.stored_shape(name, shape);
        let tensor = self.read_from(name, &stored, (0, &stored))?;
        Ok(if stored == shape { tensor } else { with_rows(&tensor, shape) })
    }

    /// Reads one tensor whole onto a device; where that is a GPU, from the file to there, without a copy in host memory, and nobody waits to
    /// hear whether it is finite: that stands in the second tensor (f32 `[1]`), which is 0 if it is. What [`read`](Self::read) finds out by
    /// itself has none.
    pub(crate) fn read_onto(&self, name: &str, shape: &[usize], device: &Device) -> Result<(Tensor, Option<Tensor>)> {
        let as_it_lies = self.files.get(name).is_some_and(|it| it.1.shape == shape && it.1.dtype != Dtype::F64);
        if !as_it_lies || !matches!(device, Device::Cuda(_)) {
            return Ok((self.read(name, shape)?.to_device(device)?, None));
        }
        let (file, it, dtype) = self.place_of(name, &self.stored_shape(name, shape))?;
        let fill = |at: usize, bytes: &mut [u8]| Ok::<(), Error>(file.read_part(it, at, bytes)?);
        let tensor = Tensor::filled_on(device, shape, dtype, fill)?;
        let infinite = cuda::find_infinite(&tensor)?;
        Ok((tensor, Some(infinite)))
    }

    /// What to say of a tensor that is not finite.
    pub(crate) fn not_finite(&self, name: &str) -> Error {
        let path = self.files.get(name).map_or_else(|| self.dir().to_owned(), |it| it.0.path().to_owned());
        let message =
            format!("{name} holds NaN or infinite values; the file is damaged, or was saved from a diverged run");
        Error::File { path, message }
    }

    /// Reads one of the `parts` of a tensor along its first dimension, each of `shape`.
    pub(crate) fn read_part(&self, name: &str, (part, parts): (usize, usize), shape: &[usize]) -> Result<Tensor> {
        self.read_from(name, &[&[parts], shape].concat(), (part, shape))
    }

    /// Reads a part of a tensor of shape `whole`.
    fn read_from(&self, name: &str, whole: &[usize], (part, shape): (usize, &[usize])) -> Result<Tensor> {
        let (file, it, dtype) = self.place_of(name, whole)?;
        let from = part * shape.iter().product::<usize>() * it.dtype.size();
        let tensor = match it.dtype {
            Dtype::F64 => {
                let mut bytes = vec![0; shape.iter().product::<usize>() * it.dtype.size()];
                file.read_part(it, from, &mut bytes)?;
                Tensor::from_vec(shape, narrowed(&bytes))
            }
            _ => Tensor::filled(shape, dtype, |bytes| file.read_part(it, from, bytes))?,
        };
        if tensor.is_finite()? { Ok(tensor) } else { Err(self.not_finite(name)) }
    }

    /// Where a tensor of shape `whole` is, and the dtype in which it is loaded.
    fn place_of(&self, name: &str, whole: &[usize]) -> Result<(&TensorFile, &Placed, DType)> {
        let (file, it) = self.files.get(name).ok_or_else(|| self.files.missing(name))?;
        let wrong = |message: String| Error::File { path: file.path().to_owned(), message };
        let Some(dtype) = loaded_dtype(it.dtype) else {
            return Err(wrong(match self.is_quantized() {
                true => {
                    format!("{name} is quantised; a matrix that is read as numbers must be stored as F32, F16 or BF16")
                }
                false => format!("{name} is stored as {}, expected F32, F16 or BF16", it.dtype),
            }));
        };
        if it.shape != whole {
            return Err(wrong(format!("{name} has shape {:?}, config.json asks for {whole:?}", it.shape)));
        }
        Ok((file, it, dtype))
    }
}

/// The first rows of a table, or all of them and then as many of their mean as `shape` asks for.
fn with_rows(table: &Tensor, shape: &[usize]) -> Tensor {
    let width: usize = shape[1..].iter().product();
    let mut values = table.to_dtype(DType::F32).data::<f32>().to_vec();
    let rows = values.len() / width;
    if rows < shape[0] {
        let mut sums = vec![0.0f64; width];
        for row in values.chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(sum, it)| *sum += f64::from(*it));
        }
        let mean: Vec<f32> = sums.iter().map(|it| (it / rows as f64) as f32).collect();
        (rows..shape[0]).for_each(|_| values.extend_from_slice(&mean));
    }
    values.truncate(shape[0] * width);
    Tensor::from_vec(shape, values).to_dtype(table.dtype())
}

/// What tensors of a stored dtype are loaded as; none where they are no floating-point numbers. Double precision is narrowed.
pub fn loaded_dtype(stored: Dtype) -> Option<DType> {
    match stored {
        Dtype::F64 => Some(DType::F32),
        other => DType::of_files(other).filter(|it| it.is_float()),
    }
}

fn narrowed(bytes: &[u8]) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks::<8>();
    numbers.iter().map(|it| f64::from_le_bytes(*it) as f32).collect()
}

/// What is wrong with a path that is no folder.
fn no_folder(dir: &Path) -> String {
    if let Some(link) = dangling(dir) {
        return link;
    }
    "is not a folder; --model takes a folder in Hugging Face's layout (config.json, model.safetensors, tokenizer.json), or a name on its hub (ORG/NAME)".to_owned()
}

/// What a folder without a `config.json` may be instead.
fn no_config(dir: &Path) -> String {
    if let Some(link) = dangling(&dir.join("config.json")) {
        return link;
    }
    if dir.join("adapter_config.json").exists() {
        return "this is an adapter: pass it with --adapter, and its base with --model".into();
    }
    let snapshots = std::fs::read_dir(dir.join("snapshots")).into_iter().flatten().flatten();
    if let Some(newest) = snapshots.max_by_key(|it| it.metadata().and_then(|it| it.modified()).ok()) {
        return format!("this is a folder of the hub's cache: the model is in {}", newest.path().display());
    }
    "a model folder has one beside its weights".into()
}
