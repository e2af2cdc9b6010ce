//! Tokens as an earlier run made them, kept by what they were made of, so that a second start does not make them again.
//!
//! An entry is known by the bytes of the data files, of the tokenizer's files and of the template, and by the flags that say what
//! a row is. What cannot be read is made anew, and what cannot be written costs time, not a run.

use crate::sources::Source;
use halfbyte_data::{DataFiles, TOKENIZER_FILES, Tokenised};
use halfbyte_files::{Draft, read_bytes};
use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    hash::Hasher,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use twox_hash::{XxHash3_64, XxHash3_128};

/// Most bytes in the cache; the entries that were used longest ago go first.
const LIMIT: u64 = 10 << 30;

/// After this long nobody is writing a draft any more.
const STALE: Duration = Duration::from_secs(3600);

/// Where the tokens of a source are, or would be.
pub(crate) struct Entry {
    path: PathBuf,
}

impl Entry {
    /// That of a source, whose tokenizer lies in `model`; none where there is no cache, or what is made changes from day to day.
    pub(crate) fn of(source: &Source, model: &Path, variables: Option<&str>) -> Option<Entry> {
        let config = &source.config;
        if config.template.as_ref().is_some_and(|it| it.takes_the_date()) {
            return None;
        }
        let mut key = XxHash3_128::new();
        let template = config.template.as_ref().map_or("", |it| it.source());
        let flags =
            (&config.columns, &config.rows, config.max_length, config.excess, config.append_eos, config.loss_on);
        let version = env!("CARGO_PKG_VERSION");
        part(&mut key, format!("{} {version} {flags:?} {variables:?}", Tokenised::FORMAT).as_bytes());
        part(&mut key, template.as_bytes());
        // An adapter has one of its own, which does not lie beside the tokenizer.
        config.template.iter().filter_map(|it| it.source_with_tools()).for_each(|it| part(&mut key, it.as_bytes()));
        for name in TOKENIZER_FILES.iter().chain(["config.json"].iter()) {
            let path = model.join(name);
            // Of what could not be read this once nothing can be known.
            match path.try_exists().ok()? {
                true => part(&mut key, &read_bytes(&path).ok()?),
                false => part(&mut key, &[]),
            }
        }
        hash_files(&mut key, &source.files).ok()?;
        let path = halfbyte_cuda::cache_dir()?.join("tokens").join(format!("{:032x}", key.finish_128()));
        Some(Entry { path })
    }

    /// What is there, if it is whole and takes no more than so many bytes.
    pub(crate) fn read(&self, limit: usize) -> Option<Tokenised> {
        let file = File::open(&self.path).ok()?;
        let bytes = file.metadata().ok()?.len().checked_sub(8).filter(|it| *it <= limit as u64)?;
        // So that it is known for one that is used.
        let _ = file.set_modified(SystemTime::now());
        let mut from = Hashed { inner: BufReader::with_capacity(1 << 20, file), hash: XxHash3_64::new() };
        let found = Tokenised::read_from(&mut from, bytes).ok()?;
        let (hash, mut said) = (from.hash.finish(), [0; 8]);
        from.inner.read_exact(&mut said).ok()?;
        (u64::from_le_bytes(said) == hash).then_some(found)
    }

    /// Keeps tokens, and lets go of the oldest of others.
    pub(crate) fn write(&self, made: &Tokenised) {
        let _ = self.try_write(made, LIMIT);
    }

    fn try_write(&self, made: &Tokenised, limit: u64) -> anyhow::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut to = Hashed { inner: Draft::create(&self.path)?, hash: XxHash3_64::new() };
        made.write_to(&mut to)?;
        let hash = to.hash.finish();
        to.inner.write_all(&hash.to_le_bytes())?;
        to.inner.finish()?;
        prune(folder, limit)?;
        Ok(())
    }
}

/// A part of a key, apart from the next.
fn part(key: &mut XxHash3_128, bytes: &[u8]) {
    key.write(&(bytes.len() as u64).to_le_bytes());
    key.write(bytes);
}

/// What the files hold, and their names, which say how that is read, but not where they lie.
fn hash_files(key: &mut XxHash3_128, files: &DataFiles) -> io::Result<()> {
    let mut piece = vec![0; 1 << 20];
    for path in files.paths() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        part(key, name.as_bytes());
        // What is no file is refused where it is read.
        if !path.is_file() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut file = File::open(path)?;
        key.write(&file.metadata()?.len().to_le_bytes());
        loop {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => key.write(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Removes what was used longest ago, until what is left has no more than so many bytes.
fn prune(folder: &Path, limit: u64) -> io::Result<()> {
    let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if is_left(&entry.file_name(), &about) {
            let _ = fs::remove_file(entry.path());
            continue;
        }
        entries.push((about.modified()?, about.len(), entry.path()));
    }
    entries.sort();
    let mut total: u64 = entries.iter().map(|it| it.1).sum();
    for (_, bytes, path) in entries {
        if total <= limit {
            break;
        }
        fs::remove_file(path)?;
        total -= bytes;
    }
    Ok(())
}

/// Whether a killed command left it: drafts of others look like it, but for their age.
fn is_left(name: &OsStr, about: &Metadata) -> bool {
    let is_old = |it: SystemTime| it.elapsed().is_ok_and(|age| age > STALE);
    halfbyte_files::is_draft(name) && about.modified().is_ok_and(is_old)
}

/// Bytes that are hashed on their way.
struct Hashed<T> {
    inner: T,
    hash: XxHash3_64,
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.hash.write(&out[..count]);
        Ok(count)
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.write(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_that_were_used_longest_ago_go_first() {
        let folder = tempfile::tempdir().unwrap();
        for (age, name) in [(3, "a"), (1, "b"), (2, "c")] {
            fs::write(folder.path().join(name), [0; 100]).unwrap();
            let file = File::options().write(true).open(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age * 60)).unwrap();
        }
        let there = |name: &str| folder.path().join(name).exists();
        prune(folder.path(), 300).unwrap();
        assert!(there("a"));
        prune(folder.path(), 299).unwrap();
        assert_eq!(["a", "b", "c"].map(there), [false, true, true]);
        prune(folder.path(), 100).unwrap();
        assert_eq!(["a", "b", "c"].map(there), [false, true, false]);
    }

    #[test]
    fn drafts_that_killed_commands_left_go() {
        let folder = tempfile::tempdir().unwrap();
        for (age, name) in [(7200, ".tmp-old"), (0, ".tmp-new"), (7200, "entry")] {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        prune(folder.path(), 300).unwrap();
        assert_eq!([".tmp-old", ".tmp-new", "entry"].map(|it| folder.path().join(it).exists()), [false, true, true]);
    }
}
