//! Folders that appear, are replaced and go as a whole.
//!
//! A folder is filled under the name `.tmp-NAME` and exchanged with what stands at its place: in one step where the system can,
//! so that either the old or the new one has the name at any time. A folder that goes loses its name first. The names are
//! fixed, so that the next who writes there finds what a killed process left; it takes a [`Lock`](crate::Lock) to know that
//! nobody else does.

use crate::{
    Error, Result,
    atomic::{PREFIX, parent, sync_folder},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How the name begins of what stepped aside for another one, and takes its place again if that one does not come.
const ASIDE: &str = ".old-";
/// How the name begins of what is being removed.
const GONE: &str = ".gone-";

/// A folder being filled.
#[derive(Debug)]
pub struct DraftFolder {
    path: PathBuf,
    draft: PathBuf,
}

impl DraftFolder {
    /// Begins a folder that will appear at `path`, in place of what an interrupted one left; until then its name is
    /// `.tmp-NAME`. What `path` lies in must exist.
    pub fn create(path: &Path) -> Result<DraftFolder> {
        let draft = beside(path, PREFIX)?;
        settle(path)?;
        remove(&draft)?;
        fs::create_dir(&draft).map_err(Error::io(&draft))?;
        Ok(DraftFolder { path: path.to_owned(), draft })
    }

    /// Where to put its files.
    pub fn folder(&self) -> &Path {
        &self.draft
    }

    /// Makes it appear. What stood at its place is removed last.
    pub fn finish(self) -> Result<()> {
        let (path, failed) = (&self.path, Error::io(&self.path));
        sync_folder(&self.draft).map_err(&failed)?;
        if !is_there(path) {
            fs::rename(&self.draft, path).map_err(&failed)?;
        } else if let Err(error) = exchange(&self.draft, path) {
            match error.kind() {
                io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput => self.replace()?,
                _ => return Err(failed(error)),
            }
        }
        sync_folder(parent(path)).map_err(failed)
        // Dropping it removes what has the draft's name now.
    }

    /// Where two folders cannot be exchanged: the old one steps aside, and comes back if the new one cannot take its place.
    fn replace(&self) -> Result<()> {
        let (path, failed) = (&self.path, Error::io(&self.path));
        let aside = beside(path, ASIDE)?;
        fs::rename(path, &aside).map_err(&failed)?;
        if let Err(error) = fs::rename(&self.draft, path) {
            if fs::rename(&aside, path).is_err() {
                let message = format!("cannot be put in its place: {error}; what stood there is {}", aside.display());
                return Err(Error::file(path, message));
            }
            return Err(failed(error));
        }
        sync_folder(parent(path)).map_err(&failed)?;
        remove(&aside)
    }
}

impl Drop for DraftFolder {
    fn drop(&mut self) {
        // If it cannot be removed, the next who writes there tries again.
        let _ = fs::remove_dir_all(&self.draft);
    }
}

/// Makes a folder, and those that it lies in, to last.
pub fn make_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    if above != path {
        make_folder(above)?;
    }
    match fs::create_dir(path) {
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(Error::io(path)(error)),
        Ok(()) => sync_folder(above).map_err(Error::io(above)),
    }
}

/// Removes a folder: it loses its name first, so that nobody finds a part of it there.
pub fn remove_folder(path: &Path) -> Result<()> {
    let gone = beside(path, GONE)?;
    remove(&gone)?;
    fs::rename(path, &gone).map_err(Error::io(path))?;
    sync_folder(parent(path)).map_err(Error::io(parent(path)))?;
    remove(&gone)
}

/// Clears a folder of what killed processes left: drafts of files and folders, and what they were removing. What had stepped
/// aside for a folder that did not come takes its place again. Only for those who know that nobody is writing there.
pub fn sweep(folder: &Path) -> Result<()> {
    let here = Error::io(folder);
    for entry in fs::read_dir(folder).map_err(&here)? {
        let entry = entry.map_err(&here)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(PREFIX) || name.starts_with(GONE) {
            remove(&entry.path())?;
        } else if let Some(name) = name.strip_prefix(ASIDE).filter(|it| !it.is_empty()) {
            settle(&folder.join(name))?;
        }
    }
    Ok(())
}

/// Ends an interrupted replacement of the folder at `path`, one way or the other. Only for those who know that nobody is writing
/// there.
pub fn settle(path: &Path) -> Result<()> {
    let aside = beside(path, ASIDE)?;
    match (is_there(&aside), is_there(path)) {
        (false, _) => Ok(()),
        (true, true) => remove(&aside),
        (true, false) => fs::rename(&aside, path).map_err(Error::io(path)),
    }
}

fn beside(path: &Path, prefix: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else { return Err(Error::file(path, "names no folder that could be written")) };
    let mut beside = std::ffi::OsString::from(prefix);
    beside.push(name);
    Ok(path.with_file_name(beside))
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a file, or a folder with all that is in it, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(it) if it.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::tests::names;

    /// A folder with one file.
    fn folder(path: &Path, file: &str) {
        fs::create_dir(path).unwrap();
        fs::write(path.join(file), "").unwrap();
    }

    fn draft(path: &Path) -> DraftFolder {
        let draft = DraftFolder::create(path).unwrap();
        fs::write(draft.folder().join("new"), "").unwrap();
        draft
    }

    #[test]
    fn a_folder_replaces_another_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        folder(&path, "old");
        let draft = draft(&path);
        assert_eq!((names(&path), names(dir.path())), (vec!["old".into()], vec![".tmp-model".into(), "model".into()]));
        draft.finish().unwrap();
        assert_eq!((names(&path), names(dir.path())), (vec!["new".to_owned()], vec!["model".to_owned()]));
        drop(DraftFolder::create(&path).unwrap());
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    #[test]
    fn the_name_is_never_without_a_folder() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        folder(&path, "new");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watched = scope.spawn(|| {
                let (mut looks, mut missed) = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    missed += usize::from(!path.join("new").exists());
                    looks += 1;
                }
                (looks, missed)
            });
            (0..200).for_each(|_| draft(&path).finish().unwrap());
            done.store(true, Ordering::Relaxed);
            let (looks, missed) = watched.join().unwrap();
            assert!(looks > 200 && missed == 0, "{missed} of {looks} looks found nothing");
        });
    }

    #[test]
    fn a_folder_that_cannot_be_exchanged_steps_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        folder(&path, "old");
        draft(&path).replace().unwrap();
        assert_eq!((names(&path), names(dir.path())), (vec!["new".to_owned()], vec!["model".to_owned()]));
    }

    #[test]
    fn what_interrupted_ones_left_is_settled_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        folder(&dir.path().join(".tmp-model"), "half");
        folder(&dir.path().join(".old-model"), "old");
        let next = DraftFolder::create(&path).unwrap();
        assert_eq!(names(&path), ["old"], "it comes back, since the one that it stepped aside for did not come");
        assert!(names(next.folder()).is_empty());
        folder(&dir.path().join(".old-model"), "older");
        drop(next);
        draft(&path).finish().unwrap();
        assert_eq!((names(&path), names(dir.path())), (vec!["new".to_owned()], vec!["model".to_owned()]));
    }

    #[test]
    fn a_folder_is_swept_of_drafts_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        folder(&dir.path().join(".tmp-checkpoint-3"), "half");
        folder(&dir.path().join(".gone-checkpoint-1"), "rest");
        folder(&dir.path().join(".old-checkpoint-2"), "whole");
        fs::write(dir.path().join(".tmp-a1b2c3"), "").unwrap();
        fs::write(dir.path().join(".hidden"), "").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [".hidden", "checkpoint-2"]);
    }

    #[test]
    fn a_folder_goes_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint-2");
        folder(&path, "state");
        remove_folder(&path).unwrap();
        assert!(names(dir.path()).is_empty());
        assert!(remove_folder(&path).unwrap_err().to_string().contains("checkpoint-2"));
    }

    #[test]
    fn folders_are_made_to_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        make_folder(&dir.path().join("a/b/c")).unwrap();
        make_folder(&dir.path().join("a/b/c")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(make_folder(&dir.path().join("file/d")).is_err());
    }
}
