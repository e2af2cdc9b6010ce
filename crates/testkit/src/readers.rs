//! Readers of files that somebody else wrote, on inputs that are nearly right.

use crate::{Dice, Night, Watchdog};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// No input is larger than a few hundred kilobytes.
const MEMORY: usize = 1 << 30;
/// Attempts after which memory is looked at: asking the system takes longer than a reader that reads a line.
const TOGETHER: u64 = 64;

/// Tries inputs of a kind, each made and read by `attempt`: none may panic, hang, or ask for memory that its size does not justify.
///
/// # Panics
/// With the seed, if one does.
pub fn tries(what: &'static str, usual: u64, mut attempt: impl FnMut(&mut Dice)) {
    let watchdog = Watchdog::new(what);
    let (mut peak, mut looked) = (address_space(), 0);
    for mut dice in Night::new(what, usual) {
        watchdog.begins(&dice);
        let seed = dice.seed;
        let done = catch_unwind(AssertUnwindSafe(|| attempt(&mut dice)));
        assert!(done.is_ok(), "{what}: seed {seed} panics; repeat it with: cargo xtask fuzz --minutes 1 --seed {seed}");
        looked += 1;
        if looked % TOGETHER == 0 {
            let (now, first) = (address_space(), seed + 1 - TOGETHER);
            assert!(now - peak < MEMORY, "{what}: a seed from {first} to {seed} asks for {} MiB", (now - peak) >> 20);
            peak = now;
        }
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
