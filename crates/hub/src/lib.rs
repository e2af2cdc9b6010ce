//! Models, adapters and data sets by name.
//!
//! People know a model by its name on Hugging Face's hub, and most machines that train have it already, in the cache that
//! huggingface_hub keeps. This crate turns a name into a folder: from that cache, or else from the hub into it, in such a way that what
//! either program wrote serves the other. It asks the network for nothing that is in the cache, and says so before it asks.

#[cfg(feature = "network")]
mod api;
mod cache;
#[cfg(feature = "network")]
mod client;
#[cfg(feature = "network")]
mod digest;
mod error;
#[cfg(feature = "network")]
mod fetch;
#[cfg(feature = "network")]
mod lasting;
pub mod name;
#[cfg(feature = "network")]
mod part;
#[cfg(feature = "network")]
mod pull;
mod settings;
#[cfg(feature = "network")]
mod space;
mod splits;
mod tree;
mod wanted;

pub use cache::{Cached, Revision, list};
pub use error::{Error, Result};
pub use name::{DataName, Kind, Name, Place};
pub use settings::{Settings, Token};
pub use wanted::Use;

use cache::Repo;
use std::path::PathBuf;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

/// What happens while a name is looked up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// The network is about to be used.
    Asks {
        /// What is looked for.
        name: &'a str,
        /// Whom is asked.
        endpoint: &'a str,
    },
    /// Files are about to be fetched.
    Fetches {
        /// What they are of.
        name: &'a str,
        /// How many.
        files: usize,
        /// Of how many bytes together.
        bytes: u64,
        /// Of which so many came earlier.
        kept: u64,
    },
    /// So many bytes came, from any connection.
    Came(u64),
    /// So many bytes that had come have to come again.
    Lost(u64),
    /// Something failed that may pass.
    Waits {
        /// What.
        why: &'a str,
        /// Until it is tried again.
        seconds: f64,
    },
    /// Another process is fetching a file.
    WaitsForOther {
        /// Which.
        file: &'a str,
    },
    /// Everything is there.
    Done,
}

/// Who is told; from several threads.
pub type Watch<'a> = &'a (dyn Fn(Event<'_>) + Sync);

/// A repository that was brought up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its folder.
    pub folder: PathBuf,
    /// The commit.
    pub commit: String,
    /// Bytes of files that were not there before.
    pub fetched: u64,
}

/// The files of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Parquet files, in their order.
    pub files: Vec<PathBuf>,
    /// Which set of the repository.
    pub config: String,
    /// Which part of it.
    pub split: String,
    /// The commit that they are of.
    pub commit: String,
    /// Bytes of files that were not there before.
    pub fetched: u64,
}

/// Where the hub keeps its conversions of data sets.
const CONVERTED: &str = "refs/convert/parquet";

/// A hub and its cache.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Where they are.
    pub settings: Settings,
}

impl Hub {
    /// The folder of a model or an adapter: from the cache, else from the hub.
    ///
    /// # Errors
    /// A name that is in neither, or may not be had; a transfer that failed; no room.
    pub fn folder(&self, name: &Name, used: Use, watch: Watch<'_>) -> Result<PathBuf> {
        match self.cached(name, used) {
            Ok(folder) => Ok(folder),
            Err(why) => {
                self.require_network(name, &why)?;
                Ok(self.pull(name, used, watch)?.folder)
            }
        }
    }

    /// The folder of a model or an adapter in the cache, or why there is none.
    ///
    /// # Errors
    /// What is missing, as a part of a sentence.
    pub fn cached(&self, name: &Name, used: Use) -> std::result::Result<PathBuf, String> {
        let repo = Repo::new(&self.settings.cache, name);
        let folder = repo.commit(name.revision()).map(|it| repo.snapshot(&it)).filter(|it| it.is_dir());
        let Some(folder) = folder else { return Err("is not there".into()) };
        match wanted::lacking(&folder, used) {
            None => Ok(folder),
            Some(file) => Err(format!("is there without {file}")),
        }
    }

    /// Asks the hub at which commit a name is now, and fetches what is not in the cache.
    ///
    /// # Errors
    /// As [`folder`](Self::folder).
    pub fn pull(&self, name: &Name, used: Use, watch: Watch<'_>) -> Result<Pulled> {
        self.require_network(name, "may be there")?;
        #[cfg(feature = "network")]
        return pull::pull(self, name, used, watch);
        #[cfg(not(feature = "network"))]
        return Err(without_network(name, (used, watch)));
    }

    /// The files of a split: from the cache, else from the hub. Of a name without a split, the first of `usual` is meant that there is,
    /// such as `train`, or else the only one.
    ///
    /// # Errors
    /// As [`folder`](Self::folder); a split that is not there.
    pub fn rows(&self, name: &DataName, usual: &[&str], watch: Watch<'_>) -> Result<Rows> {
        match self.cached_rows(name, usual)? {
            Some(rows) => Ok(rows),
            None => {
                self.require_network(&name.repo, "is not there, or not as a whole")?;
                self.pull_rows(name, usual, watch)
            }
        }
    }

    /// Asks the hub at which commit a data set is now, and fetches the files of a split that are not in the cache.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn pull_rows(&self, name: &DataName, usual: &[&str], watch: Watch<'_>) -> Result<Rows> {
        self.require_network(&name.repo, "may be there")?;
        #[cfg(feature = "network")]
        return pull::data(self, name, usual, watch);
        #[cfg(not(feature = "network"))]
        return Err(without_network(&name.repo, (usual, watch)));
    }

    /// The files of a split, if all of them are in the cache.
    fn cached_rows(&self, name: &DataName, usual: &[&str]) -> Result<Option<Rows>> {
        for at in revisions(name) {
            let repo = Repo::new(&self.settings.cache, &at);
            let Some(commit) = repo.commit(at.revision()) else { return Ok(None) };
            let folder = repo.snapshot(&commit);
            let known = match repo.tree(&commit) {
                Some(tree) => splits::splits(tree.paths()),
                // What is there is all that is known; older programs write no list.
                None => splits::splits(wanted::paths(&folder)?.iter().map(String::as_str)),
            };
            if known.is_empty() {
                continue;
            }
            let split = splits::pick(&known, name, usual).map_err(|it| Error::asked(name.repo.to_string(), it))?;
            let files: Vec<PathBuf> = split.paths.iter().map(|it| folder.join(it)).collect();
            let whole = files.iter().all(|it| it.exists());
            return Ok(whole.then_some(Rows { files, config: split.config, split: split.split, commit, fetched: 0 }));
        }
        Ok(None)
    }

    fn require_network(&self, name: &Name, why: &str) -> Result<()> {
        if !self.settings.offline {
            return Ok(());
        }
        let cache = self.settings.cache.display();
        Err(Error::asked(
            name.to_string(),
            format!(
                "no such path is here, and in the cache ({cache}) the {} of this name {why}; HF_HUB_OFFLINE forbids to fetch it. Run `halfbyte pull {name}` with a network, or unset the variable",
                name.kind.noun()
            ),
        ))
    }
}

/// The revisions at which the files of a data set are looked for.
fn revisions(name: &DataName) -> Vec<Name> {
    match name.repo.revision {
        Some(_) => vec![name.repo.clone()],
        None => vec![name.repo.clone(), name.repo.at(CONVERTED)],
    }
}

#[cfg(not(feature = "network"))]
fn without_network<T>(name: &Name, _: T) -> Error {
    Error::asked(
        name.to_string(),
        "is not in the cache, and this program was built without its half for the network (the feature `network`): `cargo build --release` builds it with",
    )
}
