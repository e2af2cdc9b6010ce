//! `cargo xtask torture` and `cargo xtask fuzz`: the tests that try at random for a fixed number of times in CI go on for as long as one likes.
//!
//! They are the same tests, told by their environment how long to go on and from which seed; each adds a line to a report.

use crate::workspace::{self, cargo, check};
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fs};

/// Kills, faults and comparisons, or those whose names hold `only`, for so many minutes each, side by side.
pub(crate) fn run(minutes: u64, seed: u64, only: Option<&str>) -> Result<()> {
    night(minutes, seed, &["--test", "halfbyte", "--test", "suite"], &format!("torture::{}", only.unwrap_or_default()))
}

/// Readers of foreign files, or those whose names hold `only`, for so many minutes each, side by side.
pub(crate) fn fuzz(minutes: u64, seed: u64, only: Option<&str>) -> Result<()> {
    night(minutes, seed, &["--test", "halfbyte", "--lib"], &format!("parsers::{}", only.unwrap_or_default()))
}

/// Runs the tests of these targets whose names hold `filter`, one target after the other.
fn night(minutes: u64, seed: u64, targets: &[&str], filter: &str) -> Result<()> {
    let root = workspace::root();
    let report = workspace::target_dir(&root)?.join("torture.tsv");
    let _ = fs::remove_file(&report);
    let mut tests = cargo();
    tests.args(["test", "--workspace"]).args(targets).args(["--", filter, "--nocapture", "--test-threads", "12"]);
    tests.current_dir(&root).env("HALFBYTE_TORTURE_SECONDS", (60 * minutes).to_string());
    tests.env("HALFBYTE_TORTURE_SEED", seed.to_string()).env("HALFBYTE_TORTURE_REPORT", &report);
    let result = check(&mut tests);
    let text = fs::read_to_string(&report).unwrap_or_default();
    println!("\n{}", table(&text).with_context(|| report.display().to_string())?);
    result
}

/// What was tried, a line each, with the sum of the attempts.
fn table(report: &str) -> Result<String> {
    let mut sums: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for line in report.lines() {
        let mut fields = line.split('\t');
        let (Some(what), Some(tried), Some(seed)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let sum = sums.entry(what).or_insert((0, seed));
        sum.0 += tried.parse::<u64>().context("a count of attempts")?;
    }
    let line = |(what, (tried, seed)): (&&str, &(u64, &str))| format!("{tried:>9}  {what}, from seed {seed}\n");
    Ok(sums.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_a_kind_are_added_up() {
        let found = table("kills\t20\t1\nfaults\t7\t1\nkills\t3\t1\n").unwrap();
        assert_eq!(found, "        7  faults, from seed 1\n       23  kills, from seed 1\n");
    }
}
