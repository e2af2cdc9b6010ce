//! What a loss of power leaves: of contents what was synced, of renames those that a sync of the folder followed.
//!
//! Stricter than most file systems, which keep the order of what happens to names; a program that outlives this outlives them.

use super::Call;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// What has changed since it was made to last.
#[derive(Debug)]
pub(super) struct Unsynced {
    folder: PathBuf,
    /// By file, the length that is sure to be there.
    contents: HashMap<u64, u64>,
    renames: Vec<Rename>,
    /// Keeps what renames replaced; beside the folder, so that a file can have a second name there.
    replaced: TempDir,
}

#[derive(Debug)]
struct Rename {
    from: PathBuf,
    to: PathBuf,
    exchange: bool,
    replaced: Option<PathBuf>,
}

impl Unsynced {
    pub(super) fn new(folder: &Path) -> Unsynced {
        let replaced = TempDir::with_prefix("halfbyte replaced ").expect("a temporary folder");
        Unsynced { folder: folder.to_owned(), contents: HashMap::new(), renames: Vec::new(), replaced }
    }

    /// Takes notice of a call before it is made.
    pub(super) fn see(&mut self, call: &Call) {
        match call.number {
            libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_ftruncate => {
                if let Some(it) = call.handle.as_ref().and_then(|it| fs::metadata(it).ok()).filter(|it| it.is_file()) {
                    let sure = self.contents.entry(it.ino()).or_insert(it.len());
                    *sure = it.len().min(*sure);
                }
            }
            libc::SYS_open | libc::SYS_openat if call.flags & libc::O_TRUNC != 0 => {
                if let Some(it) = call.paths.first().and_then(|it| fs::metadata(it).ok()) {
                    self.contents.insert(it.ino(), 0);
                }
            }
            libc::SYS_fsync | libc::SYS_fdatasync => self.synced(call),
            // Another file may get its number.
            libc::SYS_unlink | libc::SYS_unlinkat => {
                if let Some(it) =
                    call.paths.first().and_then(|it| fs::symlink_metadata(it).ok()).filter(|it| it.nlink() == 1)
                {
                    self.contents.remove(&it.ino());
                }
            }
            libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => self.rename(call),
            _ => {}
        }
    }

    fn synced(&mut self, call: &Call) {
        let Some(it) = call.handle.as_ref().and_then(|it| fs::metadata(it).ok()) else { return };
        self.contents.remove(&it.ino());
        if it.is_dir() {
            self.renames.retain(|rename| rename.to.parent() != call.file.as_deref());
        }
    }

    fn rename(&mut self, call: &Call) {
        let [from, to] = &call.paths[..] else { return };
        let exchange = call.flags != 0;
        let kept = self.replaced.path().join(self.renames.len().to_string());
        let _ = fs::remove_file(&kept);
        let replaced = (!exchange && fs::hard_link(to, &kept).is_ok()).then_some(kept);
        self.renames.push(Rename { from: from.clone(), to: to.clone(), exchange, replaced });
    }

    /// Takes away what would be gone.
    pub(super) fn lose(&mut self, names: bool) {
        self.shorten(&self.folder);
        for Rename { from, to, exchange, replaced } in self.renames.drain(..).rev().filter(|_| names) {
            // The last one may not have been made.
            if exchange {
                let _ = renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE);
            } else if fs::symlink_metadata(&from).is_err()
                && fs::rename(&to, &from).is_ok()
                && let Some(it) = replaced
            {
                fs::rename(it, &to).expect("both lie in one file system");
            }
        }
    }

    fn shorten(&self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(it) = entry.metadata() else { continue };
            if it.is_dir() {
                self.shorten(&entry.path());
            } else if let Some(sure) = self.contents.get(&it.ino()).filter(|_| it.is_file()) {
                let file = File::options().write(true).open(entry.path()).expect("a file of the test's own");
                file.set_len(*sure).expect("a file of the test's own");
            }
        }
    }
}
