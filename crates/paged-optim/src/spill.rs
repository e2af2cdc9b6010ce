//! The second tier on a CPU: one file, read and written at explicit positions.
//!
//! The file has no name (it is unlinked as soon as it is open, or deleted on close where the system wants that), so it is
//! gone when the optimizer is dropped and also when the process is killed.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct SpillFile {
    file: File,
    dir: PathBuf,
}

impl SpillFile {
    /// An empty, nameless file in `dir`. Fails early if the folder is missing or cannot be written.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(|source| Error::Spill {
            dir: dir.to_owned(),
            action: "create it".to_owned(),
            source,
        })?;
        Ok(Self { file, dir: dir.to_owned() })
    }

    pub(crate) fn write(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        let done = self.file.seek(SeekFrom::Start(position)).and_then(|_| self.file.write_all(bytes));
        done.map_err(|e| self.error("write", position, bytes.len(), e))
    }

    pub(crate) fn read(&mut self, position: u64, bytes: &mut [u8]) -> Result<()> {
        let done = self.file.seek(SeekFrom::Start(position)).and_then(|_| self.file.read_exact(bytes));
        done.map_err(|e| self.error("read", position, bytes.len(), e))
    }

    fn error(&self, verb: &str, position: u64, len: usize, source: io::Error) -> Error {
        Error::Spill { dir: self.dir.clone(), action: format!("{verb} {len} bytes at byte {position}"), source }
    }

    /// A spill file over an open file, for devices that fail in a chosen way.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn over(file: File, dir: &Path) -> Self {
        Self { file, dir: dir.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_from_any_position() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut spill = SpillFile::create(dir.path()).expect("creates");
        spill.write(300, &[3; 100]).expect("writes past the end");
        spill.write(0, &[1; 100]).expect("writes");
        let mut got = [0; 100];
        spill.read(300, &mut got).expect("reads");
        assert_eq!(got, [3; 100]);
        spill.read(0, &mut got).expect("reads");
        assert_eq!(got, [1; 100]);
        assert!(spill.read(350, &mut got).is_err(), "beyond the end there is nothing to read");
    }

    #[test]
    #[cfg(unix)]
    fn the_file_leaves_no_name_behind() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let spill = SpillFile::create(dir.path()).expect("creates");
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
        drop(spill);
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = SpillFile::create(Path::new("no/such/folder")).expect_err("must fail").to_string();
        assert!(error.contains("no/such/folder") && error.contains("create"), "{error}");
    }
}
