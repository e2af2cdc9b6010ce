//! Readers of files that somebody else wrote, on inputs that are nearly right.

use crate::{Dice, Night, Watchdog};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// No input is larger than a few hundred kilobytes.
const MEMORY: usize = 1 << 30;
/// Attempts after which memory is looked at, and the time: asking the system takes longer than a reader that reads a line.
const TOGETHER: u64 = 64;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Files in memory, where the machine has a folder for that: disks are waited for when a file is written over.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// An empty folder.
    ///
    /// # Panics
    /// Where there can be none.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Scratch {
        let memory = Path::new("/dev/shm");
        Scratch(if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder"))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file over an earlier one of its name, in whose place it comes.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        self.write_beginning(name, bytes, bytes.len())
    }

    /// Writes the beginning of a file of `len` bytes. Behind it stays what was there.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_beginning(&self, name: &str, bytes: &[u8], len: usize) -> PathBuf {
        let path = self.path().join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let written = file.and_then(|mut it| {
            it.write_all(bytes)?;
            it.set_len(len as u64)
        });
        written.expect("a file in a folder of our own");
        path
    }
}

/// Tries inputs of a kind, each made and read by `attempt`: none may panic, hang, or ask for memory that its size does not justify.
///
/// # Panics
/// With the seed, if one does.
pub fn tries(what: &'static str, usual: u64, mut attempt: impl FnMut(&mut Dice)) {
    let watchdog = Watchdog::new(what);
    let mut memory = Memory { what, peak: address_space(), looked: Instant::now(), since: 0..0 };
    for mut dice in Night::new(what, usual) {
        watchdog.begins(&dice);
        let seed = dice.seed;
        let done = catch_unwind(AssertUnwindSafe(|| attempt(&mut dice)));
        assert!(done.is_ok(), "{what}: seed {seed} panics; repeat it with: cargo xtask fuzz --minutes 1 --seed {seed}");
        memory.count(seed);
    }
    memory.look();
}

/// What attempts ask for, which is looked at now and then.
struct Memory {
    what: &'static str,
    peak: usize,
    looked: Instant,
    /// The seeds since then.
    since: Range<u64>,
}

impl Memory {
    fn count(&mut self, seed: u64) {
        self.since = if self.since.is_empty() { seed } else { self.since.start }..seed + 1;
        if (self.since.end - self.since.start).is_multiple_of(TOGETHER) && self.looked.elapsed() >= BETWEEN_LOOKS {
            self.look();
        }
    }

    fn look(&mut self) {
        let (now, Range { start, end }) = (address_space(), &self.since);
        let more = now - self.peak;
        assert!(more < MEMORY, "{}: a seed from {start} to below {end} asks for {} MiB", self.what, more >> 20);
        (self.peak, self.looked, self.since) = (now, Instant::now(), 0..0);
    }
}

/// The most that this process has ever asked for, in bytes; 0 where nobody counts.
fn address_space() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmPeak:")).unwrap_or("0");
    line.split_whitespace().next().map_or(0, |it| it.parse::<usize>().expect("a number of KiB") << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "seed 3 panics")]
    fn a_panic_is_told_with_its_seed() {
        tries("panics", 5, |dice| assert_ne!(dice.seed, 3));
    }

    #[test]
    #[cfg(target_os = "linux")]
    #[should_panic(expected = "asks for")]
    fn memory_is_counted() {
        tries("memory", TOGETHER, |dice| {
            let bytes = if dice.seed == 9 { MEMORY + (MEMORY >> 4) } else { 1 };
            std::hint::black_box(Vec::<u8>::with_capacity(bytes));
        });
    }
}
