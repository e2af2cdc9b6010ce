//! The weights of a folder: one file, or several with an index.

use crate::{Error, Placed, Result, TensorFile, read_text};
use serde::Deserialize;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// The name of weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The name of what says which tensor is in which of several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a folder, wherever they lie. All headers are checked when it is opened.
#[derive(Debug)]
pub struct ShardedFiles {
    dir: PathBuf,
    shards: Vec<Arc<TensorFile>>,
    tensors: BTreeMap<String, usize>,
}

impl ShardedFiles {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` lists.
    pub fn open(dir: &Path) -> Result<ShardedFiles> {
        let index = dir.join(INDEX);
        let (names, map) = if index.exists() { read_index(&index)? } else { (vec![single(dir)?], BTreeMap::new()) };
        let mut files = ShardedFiles { dir: dir.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            let path = dir.join(&name);
            if !path.exists() {
                return Err(Error::file(&path, format!("is missing, though {INDEX} lists it; fetch the shard again")));
            }
            files.add(TensorFile::open(&path)?, |tensor| map.get(tensor).map(|it| *it == name))?;
        }
        Ok(files)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Placed)> {
        self.tensors.iter().map(|(name, shard)| (name.as_str(), &self.shards[*shard].tensors()[name]))
    }

    /// The file that holds a tensor, and what and where it is there.
    pub fn get(&self, name: &str) -> Option<(&Arc<TensorFile>, &Placed)> {
        let shard = &self.shards[*self.tensors.get(name)?];
        Some((shard, shard.get(name)?))
    }

    /// That there is no tensor of this name, with the names that end most like it: prefixes differ between libraries.
    pub fn missing(&self, name: &str) -> Error {
        let ends = name.match_indices('.').map(|(at, _)| &name[at + 1..]).filter(|it| it.contains('.'));
        let like = |end: &str| {
            let alike = self
                .tensors
                .keys()
                .filter(|it| it.strip_suffix(end).is_some_and(|it| it.is_empty() || it.ends_with('.')));
            alike.take(3).map(String::as_str).collect::<Vec<_>>()
        };
        let near = ends
            .map(like)
            .find(|it| !it.is_empty())
            .map_or_else(String::new, |it| format!("; there is {}", it.join(", ")));
        let count = self.shards.len();
        Error::file(&self.dir, format!("the tensor {name} is in none of the {count} safetensors files{near}"))
    }

    /// Takes a file's tensors in. Of one that is in two files the index says which counts.
    fn add(&mut self, file: TensorFile, is_indexed: impl Fn(&str) -> Option<bool>) -> Result<()> {
        let at = self.shards.len();
        for name in file.tensors().keys() {
            match (self.tensors.entry(name.clone()), is_indexed(name)) {
                (Entry::Vacant(place), _) => {
                    place.insert(at);
                }
                (Entry::Occupied(mut place), Some(true)) => {
                    place.insert(at);
                }
                (Entry::Occupied(_), Some(false)) => {}
                (Entry::Occupied(place), None) => {
                    let other = self.shards[*place.get()].path().display();
                    return Err(Error::file(file.path(), format!("holds {name}, which {other} holds, too")));
                }
            }
        }
        self.shards.push(Arc::new(file));
        Ok(())
    }
}

/// Tensors of a folder being read, with a memory of which ones were.
#[derive(Debug)]
pub struct Reading<'a> {
    files: &'a ShardedFiles,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Reading<'a> {
    /// Nothing read yet.
    pub fn new(files: &'a ShardedFiles) -> Reading<'a> {
        Reading { files, used: RefCell::default() }
    }

    /// The tensors, without taking note.
    pub fn files(&self) -> &'a ShardedFiles {
        self.files
    }

    /// The file that holds a tensor, and its place there, which then counts as used.
    pub fn take(&self, name: &str) -> Option<(&'a Arc<TensorFile>, &'a Placed)> {
        let found = self.files.get(name)?;
        self.used.borrow_mut().insert(name.to_owned());
        Some(found)
    }

    /// The bytes of a tensor, which then counts as used; `None` if there is none of that name.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.take(name).map(|(file, it)| file.read(it)).transpose()
    }

    /// The names of the tensors that nobody used.
    pub fn unused(&self) -> Vec<&'a str> {
        let used = self.used.borrow();
        self.files.tensors.keys().map(String::as_str).filter(|it| !used.contains(*it)).collect()
    }
}

fn single(dir: &Path) -> Result<String> {
    let path = dir.join(SINGLE);
    if path.exists() {
        return Ok(SINGLE.to_owned());
    }
    let hint = if dir.join("pytorch_model.bin").exists() {
        "; pytorch_model.bin can run code when it is read: convert it with transformers' save_pretrained"
    } else {
        ""
    };
    Err(Error::file(&path, format!("is missing, and so is {INDEX}{hint}")))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index lists, each once, and its map.
fn read_index(path: &Path) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    let wrong = |message: String| Error::file(path, message);
    let text = read_text(path)?;
    let root: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let Index { weight_map } =
        serde_json::from_value(root).map_err(|e| wrong(format!("has no weight_map of names: {e}")))?;
    let names: BTreeSet<String> = weight_map.values().cloned().collect();
    let outside = |name: &&String| !Path::new(name).components().all(|it| matches!(it, Component::Normal(_)));
    match names.iter().find(outside) {
        Some(name) => Err(wrong(format!("lists {name:?}, which is no file of this folder"))),
        None if names.is_empty() => Err(wrong("lists no shard".into())),
        None => Ok((names.into_iter().collect(), weight_map)),
    }
}
