//! What is found out once about a machine and kept on disk: kernels as they were compiled, products as they were measured.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// A file of the cache: its key, a checksum, then the contents. What it holds is not trusted further than that.
pub(crate) struct CacheEntry {
    path: Option<PathBuf>,
    key: u64,
}

impl CacheEntry {
    /// The entry of a folder of the cache that belongs to a key, under a name that people can read.
    pub(crate) fn new(folder: &str, name: &str, extension: &str, key: &impl Hash) -> CacheEntry {
        let key = hash(key);
        let path = cache_dir().map(|dir| dir.join(folder).join(format!("{name}-{key:016x}.{extension}")));
        CacheEntry { path, key }
    }

    /// The contents, if they are there and whole.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path.as_deref()?).ok()?;
        let (head, contents) = bytes.split_at_checked(16)?;
        let number = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let whole = number(0)? == self.key && number(8)? == hash(&contents);
        whole.then(|| contents.to_vec())
    }

    /// A cache that cannot be written costs time, not a run.
    pub(crate) fn write(&self, contents: &[u8]) {
        let Some(path) = self.path.as_deref() else { return };
        let mut bytes = self.key.to_le_bytes().to_vec();
        bytes.extend(hash(&contents).to_le_bytes());
        bytes.extend(contents);
        let _ = write_whole(path, &bytes);
    }
}

/// To a name of this process' own first, so that nobody reads half a file.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let draft = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&draft, bytes)?;
    std::fs::rename(&draft, path)
}

/// Where what is found out once is kept, by all of Halfbyte: `HALFBYTE_CACHE`, or `halfbyte` in the user's cache folder.
pub fn cache_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let user = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|it| it.join(".cache")));
    var("HALFBYTE_CACHE").or_else(|| user().map(|it| it.join("halfbyte")))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
