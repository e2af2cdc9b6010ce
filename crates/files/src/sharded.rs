//! The weights of a folder: one file, or several with an index.

use crate::{Error, Placed, Result, TensorFile, hints, read_text};
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

/// The name of weights in one file that torch.save wrote.
const TORCH_SINGLE: &str = "pytorch_model.bin";
/// See [`INDEX`].
pub(crate) const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// The tensors of a folder, wherever they lie. All headers are checked when it is opened.
#[derive(Debug)]
pub struct ShardedFiles {
    dir: PathBuf,
    shards: Vec<Arc<TensorFile>>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor is: the number of its file, and its name there.
#[derive(Debug)]
struct Place {
    shard: usize,
    name: String,
}

impl ShardedFiles {
    /// Opens `model.safetensors`; without it, the files that `model.safetensors.index.json` lists; without that, what torch.save wrote
    /// (`pytorch_model.bin`), in the same way. What comes later in this order is a remnant, which transformers does not look at,
    /// either.
    pub fn open(dir: &Path) -> Result<ShardedFiles> {
        let places = [SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX];
        let Some(found) = places.into_iter().find(|it| dir.join(it).exists()) else {
            let missing = format!("is missing, and so is {INDEX}{}", hints::instead(dir));
            return Err(Error::file(&dir.join(SINGLE), missing));
        };
        let (names, map) = match found.ends_with(".json") {
            true => parse_index(&dir.join(found), &read_text(&dir.join(found))?)?,
            false => (vec![found.to_owned()], BTreeMap::new()),
        };
        let mut files = ShardedFiles { dir: dir.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            let path = dir.join(&name);
            if !path.exists() {
                let link = hints::dangling(&path).map_or_else(String::new, |it| format!(" ({it})"));
                let message = format!("is missing, though {found} lists it{link}; fetch the shard again");
                return Err(Error::file(&path, message));
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
        self.tensors.iter().map(|(name, it)| (name.as_str(), &self.shards[it.shard].tensors()[&it.name]))
    }

    /// The file that holds a tensor, and what and where it is there.
    pub fn get(&self, name: &str) -> Option<(&Arc<TensorFile>, &Placed)> {
        let place = self.tensors.get(name)?;
        let shard = &self.shards[place.shard];
        Some((shard, shard.get(&place.name)?))
    }

    /// Calls tensors by other names from now on: by what `to` makes of theirs, if it makes something of it and no tensor is
    /// called so.
    pub fn rename(&mut self, to: impl Fn(&str) -> Option<String>) {
        for name in self.tensors.keys().cloned().collect::<Vec<_>>() {
            if let Some(new) = to(&name).filter(|it| !self.tensors.contains_key(it))
                && let Some(place) = self.tensors.remove(&name)
            {
                self.tensors.insert(new, place);
            }
        }
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
        Error::file(&self.dir, format!("the tensor {name} is in none of the {count} files of weights{near}"))
    }

    /// Takes a file's tensors in. Of one that is in two files the index says which counts.
    fn add(&mut self, file: TensorFile, is_indexed: impl Fn(&str) -> Option<bool>) -> Result<()> {
        let at = self.shards.len();
        for name in file.tensors().keys() {
            let here = || Place { shard: at, name: name.clone() };
            match (self.tensors.entry(name.clone()), is_indexed(name)) {
                (Entry::Vacant(place), _) => {
                    place.insert(here());
                }
                (Entry::Occupied(mut place), Some(true)) => {
                    place.insert(here());
                }
                (Entry::Occupied(_), Some(false)) => {}
                (Entry::Occupied(place), None) => {
                    let other = self.shards[place.get().shard].path().display();
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

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index lists, each once, and its map, from the text of its file.
///
/// # Errors
/// What is no index, or lists what is no file of its folder.
pub fn parse_index(path: &Path, text: &str) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    let wrong = |message: String| Error::file(path, message);
    let root: serde_json::Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
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
