//! Names that outlive a loss of power: a folder is synced after one of its names was changed.

use crate::{Error, Result};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Makes what was done to names in a folder last. Only Unix lets a folder be opened for that.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Gives a file its final name, to last.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync_folder)
}

/// Makes a folder and those that it lies in, to last.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if above != path {
        make_folder(above)?;
    }
    match fs::create_dir(path) {
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(Error::io(path)(error)),
        Ok(()) => sync_folder(above).map_err(Error::io(above)),
    }
}
