//! A file under way: its bytes so far, in any order, and a journal of the pieces that are whole, which outlives the process.
//!
//! A line is added to the journal after the bytes of its piece are written, so that a killed process loses at most what its connections
//! were in the middle of. After a loss of power the journal may know of bytes that never reached the disk; the hash of the whole tells.

use crate::{
    Error, Result,
    cache::{PART, PIECES},
    lasting::rename,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

pub(crate) struct Part {
    path: PathBuf,
    journal: PathBuf,
    file: File,
    size: u64,
    piece: u64,
    state: Mutex<State>,
}

struct State {
    journal: File,
    whole: Vec<bool>,
}

impl Part {
    /// Opens what there is of the file that will be `blob`, or begins it.
    pub(crate) fn open(blob: &Path, size: u64, piece: u64) -> Result<Part> {
        let (path, journal) = (beside(blob, PART), beside(blob, PIECES));
        let open = |path: &Path| OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let file = open(&path).map_err(Error::io(&path))?;
        let there = file.metadata().map_err(Error::io(&path))?.len();
        let known = known(&journal, size, piece).filter(|it| {
            let end = |i: usize| (piece * (i as u64 + 1)).min(size);
            it.iter().enumerate().all(|(i, whole)| !whole || end(i) <= there)
        });
        let journal_file = OpenOptions::new().create(true).append(true).open(&journal).map_err(Error::io(&journal))?;
        let count = size.div_ceil(piece) as usize;
        let part = Part {
            path,
            journal,
            file,
            size,
            piece,
            state: Mutex::new(State { journal: journal_file, whole: vec![false; count] }),
        };
        match known {
            Some(known) => part.lock().whole = known,
            None => part.restart()?,
        }
        Ok(part)
    }

    /// Bytes of it that an earlier process brought; nothing is made.
    pub(crate) fn kept(blob: &Path, size: u64, piece: u64) -> u64 {
        let whole = known(&beside(blob, PIECES), size, piece).unwrap_or_default();
        let bytes = |i: usize| piece.min(size - piece * i as u64);
        whole.iter().enumerate().filter(|it| *it.1).map(|it| bytes(it.0)).sum()
    }

    /// Forgets everything that came.
    pub(crate) fn restart(&self) -> Result<()> {
        let mut state = self.lock();
        state.whole.fill(false);
        self.file.set_len(0).map_err(Error::io(&self.path))?;
        state.journal.set_len(0).map_err(Error::io(&self.journal))?;
        writeln!(state.journal, "{} {}", self.size, self.piece).map_err(|e| self.refused(e))
    }

    /// The pieces that are not whole.
    pub(crate) fn missing(&self) -> Vec<usize> {
        self.lock().whole.iter().enumerate().filter(|it| !it.1).map(|it| it.0).collect()
    }

    pub(crate) fn pieces(&self) -> usize {
        self.lock().whole.len()
    }

    pub(crate) fn has(&self, piece: usize) -> bool {
        self.lock().whole[piece]
    }

    /// The first byte of a piece and the one after its last.
    pub(crate) fn range(&self, piece: usize) -> (u64, u64) {
        let first = self.piece * piece as u64;
        (first, (first + self.piece).min(self.size))
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        write_at(&self.file, at, bytes).map_err(|e| self.refused(e))
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        read_at(&self.file, at, bytes).map_err(Error::io(&self.path))
    }

    /// Notes that a piece is written.
    pub(crate) fn done(&self, piece: usize) -> Result<()> {
        let mut state = self.lock();
        writeln!(state.journal, "{piece}").map_err(|e| self.refused(e))?;
        state.whole[piece] = true;
        Ok(())
    }

    /// Gives the file its name.
    pub(crate) fn finish(self, blob: &Path) -> Result<()> {
        self.file.sync_all().map_err(|e| self.refused(e))?;
        rename(&self.path, blob).map_err(Error::io(blob))?;
        let _ = fs::remove_file(&self.journal);
        Ok(())
    }

    /// Takes everything away.
    pub(crate) fn discard(self) {
        let _ = fs::remove_file(&self.journal);
        let _ = fs::remove_file(&self.path);
    }

    /// What the system said about writing, with what helps where there is no room.
    fn refused(&self, error: io::Error) -> Error {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        if full.contains(&error.kind()) {
            return Error::transfer(
                self.path.display().to_string(),
                format!(
                    "{error}. What has come is kept, and the same command goes on from it when there is room; HF_HOME moves the cache to another disk"
                ),
            );
        }
        Error::Io { path: self.path.clone(), source: error }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}

fn beside(blob: &Path, ending: &str) -> PathBuf {
    let mut name = blob.file_name().expect("a blob has a name").to_owned();
    name.push(ending);
    blob.with_file_name(name)
}

/// The pieces that a journal knows, if it is one of such a file. A line that was cut off counts for nothing.
fn known(journal: &Path, size: u64, piece: u64) -> Option<Vec<bool>> {
    let text = fs::read_to_string(journal).ok()?;
    let whole_lines = &text[..=text.rfind('\n')?];
    let mut lines = whole_lines.lines();
    if lines.next()? != format!("{size} {piece}") {
        return None;
    }
    let mut whole = vec![false; size.div_ceil(piece) as usize];
    for line in lines {
        *whole.get_mut(line.parse::<usize>().ok()?)? = true;
    }
    Some(whole)
}

#[cfg(unix)]
fn write_at(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(unix)]
fn read_at(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        (at, bytes) = (at + n as u64, &bytes[n..]);
    }
    Ok(())
}

#[cfg(windows)]
fn read_at(file: &File, mut at: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (at, bytes) = (at + n as u64, &mut bytes[n..]),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_outlives_the_process_and_a_cut_line_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("etag");
        let part = Part::open(&blob, 25, 10).unwrap();
        assert_eq!((part.missing(), part.range(2)), (vec![0, 1, 2], (20, 25)));
        part.write(20, b"abcde").unwrap();
        part.done(2).unwrap();
        part.write(0, b"01234").unwrap();
        drop(part);
        let mut journal = OpenOptions::new().append(true).open(beside(&blob, PIECES)).unwrap();
        journal.write_all(b"1").unwrap();
        assert_eq!(Part::kept(&blob, 25, 10), 5);
        assert_eq!(Part::open(&blob, 25, 10).unwrap().missing(), [0, 1]);
        assert_eq!(Part::open(&blob, 26, 10).unwrap().missing(), [0, 1, 2], "another file begins anew");
    }

    #[test]
    fn a_journal_without_its_bytes_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("etag");
        let part = Part::open(&blob, 25, 10).unwrap();
        part.write(0, b"0123456789").unwrap();
        part.done(0).unwrap();
        drop(part);
        fs::remove_file(beside(&blob, PART)).unwrap();
        assert_eq!(Part::open(&blob, 25, 10).unwrap().missing(), [0, 1, 2]);
    }
}
