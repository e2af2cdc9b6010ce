//! Files that appear under their names only when they are whole.
//!
//! A draft is written beside its place, synced, renamed, and the folder synced, so that whoever looks, after a loss of power
//! too, sees what was there before or what is there now. A draft that is dropped is removed; one that a killed process left
//! begins with `.tmp-` and goes with [`sweep`](crate::sweep).

use crate::{Error, Result};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// How the name of every draft begins.
pub(crate) const PREFIX: &str = ".tmp-";

/// Writes a file so that a reader sees the old contents or the new, never a part.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    let mut draft = Draft::create(path)?;
    draft.write_all(contents).map_err(Error::io(path))?;
    draft.finish()
}

/// A file being written, in large pieces however small those are that come.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
}

impl Draft {
    /// Begins a file that will appear at `path`, whose folder must exist.
    pub fn create(path: &Path) -> Result<Draft> {
        let file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(parent(path)).map_err(Error::io(path))?;
        Ok(Draft { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Sets room for so many bytes aside, of a file that is written to its end. Where there is none that is said now and not after
    /// hours; and file systems that look for room page by page take what follows several times as fast.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        // What is less than a buffer is written at once.
        if bytes as usize <= self.file.capacity() {
            return Ok(());
        }
        reserve(self.file.get_ref().as_file(), bytes).map_err(Error::io(&self.path))
    }

    /// Where it will appear.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it appear, in place of what was there.
    pub fn finish(self) -> Result<()> {
        let failed = Error::io(&self.path);
        let file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        // A temporary file is private to its owner; the result has the usual permissions.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(&failed)?;
        }
        file.as_file().sync_all().map_err(&failed)?;
        file.persist(&self.path).map_err(|e| failed(e.error))?;
        sync_folder(parent(&self.path)).map_err(failed)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// File systems that set nothing aside take the bytes as they come.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::INTR) => {}
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
            Err(other) => return Err(other.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as where it is done")]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// Whether a file's name is one that drafts have.
pub fn is_draft(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(PREFIX)
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes renames in a folder last. Only Unix lets a folder be opened for that.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// What a folder holds, sorted.
    pub(crate) fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_finished_and_a_dropped_draft_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"old").unwrap();
        let mut draft = Draft::create(&path).unwrap();
        draft.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(draft);
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["file".to_owned()]));
        let mut draft = Draft::create(&path).unwrap();
        draft.write_all(b"new").unwrap();
        draft.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"new".to_vec(), vec!["file".to_owned()]));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn room_that_is_set_aside_is_filled_and_what_there_is_no_room_for_is_refused() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let contents = vec![7; (3 << 20) + 1];
        let mut draft = Draft::create(&path).unwrap();
        draft.reserve(contents.len() as u64).unwrap();
        let blocks = draft.file.get_ref().as_file().metadata().unwrap().blocks();
        draft.write_all(&contents).unwrap();
        draft.finish().unwrap();
        assert!(fs::read(&path).unwrap() == contents);
        // 512 bytes each; a file system that sets nothing aside has none before it is written.
        assert!(blocks == 0 || blocks * 512 >= contents.len() as u64, "{blocks} blocks were set aside");

        let mut draft = Draft::create(&path).unwrap();
        let error = draft.reserve(1 << 60).map_err(|it| it.to_string());
        drop(draft);
        assert!(blocks == 0 || error.is_err_and(|it| it.contains("file")), "an exbibyte has no room anywhere");
        assert!(fs::read(&path).unwrap() == contents && names(dir.path()) == ["file"]);
    }

    #[test]
    fn a_file_whose_folder_is_missing_is_named() {
        let error = write_atomic(Path::new("no/such/folder/file"), b"").unwrap_err().to_string();
        assert!(error.contains("no/such/folder/file"), "{error}");
    }
}
