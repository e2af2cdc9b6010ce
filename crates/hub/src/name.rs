//! Names of what lies on a hub, told from paths.
//!
//! What exists on disk is a path, always. Of the rest, `ORG/NAME` is a name, unless a folder `ORG` is here: then it is a path with a
//! slip of the pen, and asking a hub for it would tell strangers about our folders. `ORG/NAME@REVISION` is a name whatever is here.

use crate::{Error, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A model or an adapter.
    Model,
    /// A data set.
    DataSet,
}

impl Kind {
    /// The kind in the hub's addresses and in the names of the cache's folders.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::DataSet => "datasets",
        }
    }

    /// As it is said to people.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::DataSet => "data set",
        }
    }
}

/// A repository on a hub, perhaps at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// What it holds.
    pub kind: Kind,
    /// `ORG/NAME`.
    pub id: String,
    /// A branch, a tag or a commit, if one was named.
    pub revision: Option<String>,
}

impl Name {
    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    pub(crate) fn at(&self, revision: &str) -> Name {
        Name { revision: Some(revision.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.revision.as_ref().map_or(Ok(()), |it| write!(f, "@{it}"))
    }
}

/// A part of a data set: `ORG/SET[@REVISION][:[CONFIG/]SPLIT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataName {
    /// The repository.
    pub repo: Name,
    /// Which of several sets in one repository.
    pub config: Option<String>,
    /// Which part of it, such as `train`.
    pub split: Option<String>,
}

impl fmt::Display for DataName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        match (&self.config, &self.split) {
            (Some(config), Some(split)) => write!(f, ":{config}/{split}"),
            (None, Some(split)) => write!(f, ":{split}"),
            _ => Ok(()),
        }
    }
}

/// What a text names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place<N> {
    /// A path, which need not exist.
    Here(PathBuf),
    /// Something on a hub.
    There(N),
}

/// Reads what was given as a model or an adapter.
///
/// # Errors
/// A text that is a name or a mistyped path, and names a folder of ours.
pub fn model(text: &str) -> Result<Place<Name>> {
    if Path::new(text).exists() {
        return Ok(Place::Here(text.into()));
    }
    let (id, revision) = split(text, '@');
    let Some(name) = name(Kind::Model, id, revision) else { return Ok(Place::Here(text.into())) };
    refuse_neighbour(&name, text, &format!("{id}@main"))?;
    Ok(Place::There(name))
}

/// Endings of files of rows: a name that does not exist and ends so is a path.
const ENDINGS: [&str; 11] = ["parquet", "jsonl", "json", "ndjson", "csv", "tsv", "gz", "zst", "arrow", "txt", "yaml"];

/// Reads what was given as data.
///
/// # Errors
/// As [`model`].
pub fn data(text: &str) -> Result<Place<DataName>> {
    if Path::new(text).exists() {
        return Ok(Place::Here(text.into()));
    }
    let (whole, part) = split(text, ':');
    let (id, revision) = split(whole, '@');
    let is_file = part.is_none() && revision.is_none() && id.rsplit_once('.').is_some_and(|it| ENDINGS.contains(&it.1));
    let (config, split) = match part.map(|it| it.split_once('/').map_or((None, it), |it| (Some(it.0), it.1))) {
        Some((config, split)) if is_plain(split) && config.is_none_or(is_plain) => (config, Some(split)),
        Some(_) => return Ok(Place::Here(text.into())),
        None => (None, None),
    };
    let Some(repo) = name(Kind::DataSet, id, revision).filter(|_| !is_file) else {
        return Ok(Place::Here(text.into()));
    };
    refuse_neighbour(&repo, text, &format!("{id}@main"))?;
    Ok(Place::There(DataName { repo, config: config.map(str::to_owned), split: split.map(str::to_owned) }))
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |it| (it.0, Some(it.1)))
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
}

/// A name, if the parts are those of one.
fn name(kind: Kind, id: &str, revision: Option<&str>) -> Option<Name> {
    let good = revision.is_none_or(is_revision) && is_id(id);
    good.then(|| Name { kind, id: id.to_owned(), revision: revision.map(str::to_owned) })
}

/// The rules of the hub for `ORG/NAME`.
pub(crate) fn is_id(id: &str) -> bool {
    let Some((org, name)) = id.split_once('/') else { return false };
    let good = |it: &str| {
        is_part(it)
            && !it.starts_with(['-', '.'])
            && !it.ends_with(['-', '.'])
            && !it.contains("--")
            && !it.contains("..")
    };
    id.len() <= 96 && good(org) && good(name) && !name.ends_with(".git")
}

fn is_part(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

/// A branch, tag or commit, in a form that is also a path below `refs`.
fn is_revision(revision: &str) -> bool {
    revision.split('/').all(|it| is_part(it) && !it.starts_with('.') && !it.ends_with('.'))
}

fn refuse_neighbour(name: &Name, text: &str, explicit: &str) -> Result<()> {
    let Some((org, rest)) = name.id.split_once('/') else { return Ok(()) };
    if name.revision.is_some() || !Path::new(org).is_dir() {
        return Ok(());
    }
    Err(Error::asked(
        text,
        format!(
            "read as a path, it does not exist: the folder {org} holds no {rest}; read as the name of a {} on the hub, it must be written {explicit}, since that folder is here",
            name.kind.noun()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(text: &str) -> Option<String> {
        match model(text).unwrap() {
            Place::There(name) => Some(name.to_string()),
            Place::Here(path) => {
                assert_eq!(path, Path::new(text));
                None
            }
        }
    }

    #[test]
    fn names_are_told_from_paths() {
        for name in ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@v1.0", "a/b@refs/pr/1", "src-of/x"] {
            assert_eq!(there(name).as_deref(), Some(name));
        }
        let paths = [
            "/a/b", "./a/b", "../a", "~/a", "a", "gpt2", "a/b/c", "a/", "a\\b", "a b/c", "a/b--c", "a/..", "a/b.git",
            "a/b@", "a/b@x//y", "a/b@../x", "",
        ];
        for path in paths {
            assert_eq!(there(path), None, "{path}");
        }
        // Tests run in the folder of the crate.
        assert_eq!(there("src/name.rs"), None, "what exists is a path");
        assert_eq!(there("src/nmae.rs@main").as_deref(), Some("src/nmae.rs@main"));
    }

    #[test]
    fn a_slip_in_a_path_is_told_both_readings() {
        let message = model("src/nmae.rs").unwrap_err().to_string();
        assert!(
            message.contains("the folder src holds no nmae.rs") && message.contains("src/nmae.rs@main"),
            "{message}"
        );
    }

    #[test]
    fn data_sets_have_splits_and_files_have_endings() {
        let read = |text: &str| match data(text).unwrap() {
            Place::There(it) => Some((it.repo.id, it.repo.revision, it.config, it.split)),
            Place::Here(_) => None,
        };
        let some = |it: &str| Some(it.to_owned());
        assert_eq!(read("a/b"), Some(("a/b".into(), None, None, None)));
        assert_eq!(read("a/b:test"), Some(("a/b".into(), None, None, some("test"))));
        assert_eq!(read("a/b@v1:sub-set/test"), Some(("a/b".into(), some("v1"), some("sub-set"), some("test"))));
        for path in ["a/rows.jsonl", "a/rows.jsonl.gz", "a/b.parquet", "rows", "a/b:", "a/b:x/y/z", "a/*.parquet"] {
            assert_eq!(read(path), None, "{path}");
        }
        assert_eq!(read("a/b.json@main").map(|it| it.0), some("a/b.json"));
    }
}
