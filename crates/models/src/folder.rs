//! A Hugging Face folder: its configuration and its safetensors shards, read tensor by tensor.
//!
//! Tensors are read through the file into one buffer of their own size. Mapping the file would count every touched page
//! as resident memory, which is what a 4-bit load wants to avoid.

use crate::{Error, ModelConfig, Result};
use halfbyte_tensor::{DType, Tensor, bf16, f16};
use safetensors::{Dtype, tensor::Metadata};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The length of the header's length.
const PREFIX_BYTES: u64 = 8;
/// No real header is larger; a flipped bit in its length should not ask for terabytes.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Where a tensor lies and what it is.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// The dtype in the file.
    pub dtype: DType,
    shard: usize,
    begin: u64,
}

/// An opened model folder. All shards are checked for their headers and lengths when it is opened.
#[derive(Debug)]
pub struct ModelFolder {
    dir: PathBuf,
    config: ModelConfig,
    shards: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
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
        let config = ModelConfig::parse(&config_path, &read_text(&config_path)?)?;
        let shards = shard_paths(dir)?;
        let mut folder = ModelFolder { dir: dir.to_owned(), config, shards, tensors: BTreeMap::new() };
        for shard in 0..folder.shards.len() {
            folder.read_header(shard)?;
        }
        Ok(folder)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether config.json says that the weights are quantised.
    pub fn is_quantized(&self) -> bool {
        self.config.raw.get("quantization_config").is_some_and(|it| !it.is_null())
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Reads one tensor whole. Fails, naming it, if it is missing, of another shape than `shape`, or not finite.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let info = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let path = &self.shards[info.shard];
        let wrong = |message: String| Error::File { path: path.clone(), message };
        if self.is_quantized() && !info.dtype.is_float() {
            return Err(wrong(format!(
                "{name} is quantised; a matrix that is read as numbers must be stored as F32, F16 or BF16"
            )));
        }
        if info.shape != shape {
            return Err(wrong(format!("{name} has shape {:?}, config.json asks for {shape:?}", info.shape)));
        }
        if !info.dtype.is_float() {
            return Err(wrong(format!("{name} is stored as {}, expected F32, F16 or BF16", info.dtype)));
        }
        let bytes = self.read_bytes(name)?.ok_or_else(|| self.missing(name))?;
        let tensor = decode(&bytes, info.dtype, shape);
        if !tensor.is_finite() {
            return Err(wrong(format!(
                "{name} holds NaN or infinite values; the file is damaged, or was saved from a diverged run"
            )));
        }
        Ok(tensor)
    }

    /// The file that holds a tensor, and the byte where it begins there.
    pub fn place(&self, name: &str) -> Option<(&Path, u64)> {
        self.tensors.get(name).map(|it| (self.shards[it.shard].as_path(), it.begin))
    }

    /// The bytes of one tensor as they lie in the file; `None` if there is none of that name.
    pub fn read_bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let path = &self.shards[info.shard];
        let io = |source| Error::Io { path: path.clone(), source };
        let mut bytes = vec![0; info.shape.iter().product::<usize>() * info.dtype.size()];
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(info.begin)).and_then(|_| file.read_exact(&mut bytes)).map_err(io)?;
        Ok(Some(bytes))
    }

    fn missing(&self, name: &str) -> Error {
        let near: Vec<&str> = self
            .tensors
            .keys()
            .map(String::as_str)
            .filter(|it| it.ends_with(name.rsplit_once('.').map_or(name, |it| it.0)))
            .take(3)
            .collect();
        let near = if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) };
        Error::File {
            path: self.dir.clone(),
            message: format!("the tensor {name} is in none of the {} safetensors files{near}", self.shards.len()),
        }
    }

    fn read_header(&mut self, shard: usize) -> Result<()> {
        let path = self.shards[shard].clone();
        let wrong = |message: String| Error::File { path: path.clone(), message };
        let io = |source| Error::Io { path: path.clone(), source };
        let mut file = File::open(&path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let mut prefix = [0; PREFIX_BYTES as usize];
        file.read_exact(&mut prefix)
            .map_err(|_| wrong(format!("is not a safetensors file: it has only {len} bytes")))?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER_BYTES || header_len > len - PREFIX_BYTES {
            return Err(wrong(format!(
                "is not a whole safetensors file: its header claims {header_len} bytes, the file has {len}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is damaged: {e}")))?;
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let (begin, end) = (PREFIX_BYTES + header_len + begin as u64, PREFIX_BYTES + header_len + end as u64);
            let Some(dtype) = dtype(info.dtype) else {
                return Err(wrong(format!("{name} has dtype {:?}; expected F32, F16 or BF16", info.dtype)));
            };
            let elements = info.shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent));
            if elements.and_then(|it| it.checked_mul(dtype.size())).map(|it| it as u64) != end.checked_sub(begin) {
                return Err(wrong(format!(
                    "{name} of shape {:?} does not fill its place in the file; the header is damaged",
                    info.shape
                )));
            }
            if end > len {
                return Err(wrong(format!(
                    "is truncated: {name} ends at byte {end}, the file has {len}; fetch it again"
                )));
            }
            let info = TensorInfo { shape: info.shape.clone(), dtype, shard, begin };
            self.tensors.insert(name, info);
        }
        Ok(())
    }
}

fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let index = dir.join(INDEX);
    if !index.exists() {
        let single = dir.join(SINGLE);
        if single.exists() {
            return Ok(vec![single]);
        }
        let pickle = dir.join("pytorch_model.bin").exists();
        let hint = if pickle {
            "; pytorch_model.bin can run code when it is read: convert it with transformers' save_pretrained"
        } else {
            ""
        };
        return Err(Error::File { path: single, message: format!("is missing, and so is {INDEX}{hint}") });
    }
    let wrong = |message: String| Error::File { path: index.clone(), message };
    let root: Value = serde_json::from_str(&read_text(&index)?).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let map = root.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong("has no weight_map".into()))?;
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let paths: Vec<PathBuf> = names.iter().map(|it| dir.join(it)).collect();
    match paths.iter().find(|it| !it.exists()) {
        Some(path) => Err(Error::File {
            path: path.clone(),
            message: format!("is missing, though {INDEX} lists it; fetch the shard again"),
        }),
        None if paths.is_empty() => Err(wrong("lists no shard".into())),
        None => Ok(paths),
    }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::Bf16),
        // Masks of old GPT-Neo files; never read.
        Dtype::U8 | Dtype::BOOL | Dtype::I8 => Some(DType::U8),
        Dtype::U32 | Dtype::I32 => Some(DType::U32),
        _ => None,
    }
}

fn decode(bytes: &[u8], dtype: DType, shape: &[usize]) -> Tensor {
    let pair = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        DType::Bf16 => Tensor::from_vec(shape, bytes.chunks_exact(2).map(|b| bf16::from_bits(pair(b))).collect()),
        DType::F16 => Tensor::from_vec(shape, bytes.chunks_exact(2).map(|b| f16::from_bits(pair(b))).collect()),
        _ => Tensor::from_vec(
            shape,
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        ),
    }
}
