//! Writing safetensors files as a stream: what comes is announced first, then the bytes pass through, so that no file needs
//! memory of its size.

use crate::{Draft, Error, Result, TensorSpec, header, sharded, write_atomic};
use serde_json::{Map, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// A safetensors file being written. It appears under its name only when it is whole.
#[derive(Debug)]
pub struct TensorWriter {
    draft: Draft,
    waiting: std::vec::IntoIter<TensorSpec>,
    /// The tensor that is being written, and how many of its bytes are to come.
    current: (String, usize),
}

impl TensorWriter {
    /// Starts a file of these tensors, which are then written in this order.
    pub fn create(path: &Path, tensors: Vec<TensorSpec>) -> Result<TensorWriter> {
        let mut draft = Draft::create(path)?;
        let header = header::render(&tensors);
        draft.reserve((header.len() + tensors.iter().map(TensorSpec::bytes).sum::<usize>()) as u64)?;
        draft.write_all(&header).map_err(Error::io(path))?;
        Ok(TensorWriter { draft, waiting: tensors.into_iter(), current: (String::new(), 0) })
    }

    /// Writes bytes (little-endian) of the tensor `name`: all, or the next ones of a tensor that comes in pieces.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.current.1 == 0 {
            let next = self.waiting.next().unwrap_or_else(|| panic!("{name} was not announced"));
            self.current.1 = next.bytes();
            self.current.0 = next.name;
        }
        let (expected, left) = &mut self.current;
        assert_eq!(name, expected, "tensors are written whole, in the order in which they were announced");
        assert!(bytes.len() <= *left, "{name}: {} bytes were written, {left} were to come", bytes.len());
        *left -= bytes.len();
        self.draft.write_all(bytes).map_err(Error::io(self.draft.path()))
    }

    /// Whether all tensors were written.
    pub fn is_whole(&self) -> bool {
        self.waiting.len() == 0 && self.current.1 == 0
    }

    /// Makes the file appear.
    pub fn finish(self) -> Result<()> {
        assert!(self.is_whole(), "{}: every announced tensor is written", self.draft.path().display());
        self.draft.finish()
    }
}

/// The weights of a folder being written: `model.safetensors`, or several files of at most so many bytes with an index, as
/// Hugging Face names them. A tensor that is larger has a file of its own.
#[derive(Debug)]
pub struct ShardedWriter {
    dir: PathBuf,
    waiting: std::vec::IntoIter<(String, Vec<TensorSpec>)>,
    open: Option<TensorWriter>,
    /// The index, where there are several files.
    index: Option<serde_json::Value>,
}

impl ShardedWriter {
    /// Starts the files of these tensors, which are then written in this order.
    pub fn create(dir: &Path, tensors: Vec<TensorSpec>, max_shard_bytes: u64) -> ShardedWriter {
        let total: usize = tensors.iter().map(TensorSpec::bytes).sum();
        let shards = shards(tensors, max_shard_bytes);
        let count = shards.len();
        let name_of = |shard: usize| match count {
            1 => sharded::SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        let shards: Vec<(String, Vec<TensorSpec>)> =
            shards.into_iter().enumerate().map(|(i, tensors)| (name_of(i), tensors)).collect();
        let index = (count > 1).then(|| {
            let file_of = |(file, tensors): &(String, Vec<TensorSpec>)| -> Vec<_> {
                tensors.iter().map(|it| (it.name.clone(), json!(file))).collect()
            };
            let map: Map<_, _> = shards.iter().flat_map(file_of).collect();
            json!({ "metadata": { "total_size": total }, "weight_map": map })
        });
        ShardedWriter { dir: dir.to_owned(), waiting: shards.into_iter(), open: None, index }
    }

    /// Writes bytes (little-endian) of the tensor `name`: all, or the next ones of a tensor that comes in pieces.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut writer = match self.open.take() {
            Some(it) => it,
            None => {
                let (file, tensors) = self.waiting.next().unwrap_or_else(|| panic!("{name} was not announced"));
                TensorWriter::create(&self.dir.join(file), tensors)?
            }
        };
        writer.write(name, bytes)?;
        if writer.is_whole() {
            return writer.finish();
        }
        self.open = Some(writer);
        Ok(())
    }

    /// Writes the index, where there are several files.
    pub fn finish(self) -> Result<()> {
        assert!(self.open.is_none() && self.waiting.len() == 0, "every announced tensor is written");
        match self.index {
            None => Ok(()),
            Some(index) => write_atomic(&self.dir.join(sharded::INDEX), format!("{index:#}\n").as_bytes()),
        }
    }
}

/// Runs of tensors of at most `limit` bytes, or of one tensor that is larger.
fn shards(tensors: Vec<TensorSpec>, limit: u64) -> Vec<Vec<TensorSpec>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for it in tensors {
        let bytes = it.bytes() as u64;
        if filled > 0 && filled + bytes > limit {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("there is a first one").push(it);
    }
    shards
}
