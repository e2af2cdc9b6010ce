//! Locks that end with the process that holds them, however it ends: a file may stay, but nobody holds it.

use crate::{Error, Result};
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

/// A file that is locked as long as this value lives.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    /// Whether the file system knows locks.
    effective: bool,
}

impl Lock {
    /// Locks the file at `path`, which is made for it and goes with it; none if somebody else holds it, on this machine or, if
    /// the file system can, on another one.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn take(path: &Path) -> Result<Option<Lock>> {
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(path).map_err(Error::io(path))?;
            let effective = match file.try_lock() {
                Ok(()) if is_at(&file, path) => true,
                // Who held it has removed it since it was opened here.
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(_)) => false,
            };
            return Ok(Some(Lock { path: path.to_owned(), file, effective }));
        }
    }

    /// Whether it keeps others out: not where the file system has no locks.
    pub fn is_effective(&self) -> bool {
        self.effective
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still held, so that nobody else's is removed.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |it: &fs::Metadata| (it.dev(), it.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time_and_a_file_that_was_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        fs::write(&path, "").unwrap();
        let first = Lock::take(&path).unwrap().expect("nobody holds it");
        assert!(first.is_effective());
        assert!(Lock::take(&path).unwrap().is_none());
        drop(first);
        assert!(!path.exists());
        assert!(Lock::take(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_on_a_file_without_a_name_keeps_nobody_out_and_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let file = File::create(&path).unwrap();
        assert!(is_at(&file, &path));
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&file, &path));
        File::create(&path).unwrap();
        assert!(!is_at(&file, &path));
    }
}
