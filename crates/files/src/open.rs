//! Opening what is to be read. A pipe would be waited for without end, and a device has none.

use crate::{Error, Result};
use std::{
    fs::{File, Metadata, OpenOptions},
    io::{ErrorKind, Read},
    path::Path,
};

/// Opens a file to be read.
///
/// # Errors
/// One that cannot be opened, or that is a pipe, a device or a folder.
pub fn open_file(path: &Path) -> Result<File> {
    plain(path, &std::fs::metadata(path).map_err(Error::io(path))?)?;
    File::open(path).map_err(Error::io(path))
}

/// Opens a file to write at its end, which is made where there is none.
///
/// # Errors
/// As [`open_file`], and a folder that is missing.
pub fn append_file(path: &Path) -> Result<File> {
    match std::fs::metadata(path) {
        Ok(what) => plain(path, &what)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(path)(e)),
    }
    OpenOptions::new().append(true).create(true).open(path).map_err(Error::io(path))
}

fn plain(path: &Path, what: &Metadata) -> Result<()> {
    if what.is_file() {
        return Ok(());
    }
    let found = if what.is_dir() { "a folder" } else { "a pipe or a device" };
    Err(Error::file(path, format!("is {found}, where a file is expected")))
}

/// The bytes of a file.
///
/// # Errors
/// As [`open_file`].
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// As [`open_file`], and bytes that are no UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?)
        .map_err(|e| Error::file(path, format!("is not text: byte {} is no UTF-8", e.utf8_error().valid_up_to())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_no_file_of_text_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path| read_text(path).unwrap_err().to_string();
        assert!(refused(dir.path()).contains("a folder"));
        let path = dir.path().join("file");
        assert!(refused(&path).contains("file"));
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(refused(&path).contains("byte 2"));
        #[cfg(target_os = "linux")]
        assert!(refused(Path::new("/dev/full")).contains("a device"));
        assert!(append_file(dir.path()).unwrap_err().to_string().contains("a folder"));
        #[cfg(target_os = "linux")]
        assert!(append_file(Path::new("/dev/full")).unwrap_err().to_string().contains("a device"));
    }

    #[test]
    fn a_file_is_made_and_then_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for line in ["a\n", "b\n"] {
            append_file(&path).unwrap().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(read_text(&path).unwrap(), "a\nb\n");
        assert!(append_file(&dir.path().join("no/file")).is_err());
    }
}
