//! `cargo xtask torture` and `cargo xtask fuzz`: the tests that try at random for a fixed number of times in CI go on for as long as one likes.
//!
//! They are the same tests, told by their environment how long to go on and from which seed; each adds lines to a report while it goes on,
//! which `cargo xtask tally` sums up at any time.

use crate::coverage::Coverage;
use crate::workspace::{self, cargo, check};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The packages whose tests read foreign files, in modules called `parsers`.
const READERS: [&str; 3] = ["e2e", "halfbyte-train", "halfbyte-trainer"];

/// Kills, faults and comparisons, or those whose names hold `only`, for so many minutes each, side by side.
pub(crate) fn run(minutes: u64, seed: u64, only: Option<&str>) -> Result<()> {
    let root = workspace::root();
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--test", "halfbyte", "--test", "suite", "--"]).current_dir(&root);
    tests.arg(format!("torture::{}", only.unwrap_or_default()));
    Night::begins(&root, minutes, seed)?.tell(&mut tests);
    let result = check(&mut tests);
    tally()?;
    result
}

/// Readers of foreign files, or those whose names hold `only`, for so many minutes each, side by side: optimised, with the checks that
/// debug binaries have, and each in a process of its own, so that what it asks for is told from what others do.
///
/// With `coverage` they count where they come by, which takes longer, and what they reached is printed.
pub(crate) fn fuzz(minutes: u64, seed: u64, only: Option<&str>, coverage: bool) -> Result<()> {
    let root = workspace::root();
    let coverage = coverage.then(|| Coverage::begins(&root)).transpose()?;
    let mut build = cargo();
    if coverage.is_some() {
        Coverage::instrument(&root, &mut build)?;
    }
    build.args(["test", "--profile", "night", "--lib", "--test", "halfbyte"]);
    build.args(READERS.iter().flat_map(|it| ["--package", it]));
    let programs = workspace::test_programs(&root, build)?;
    let night = Night::begins(&root, minutes, seed)?;
    let mut started = Vec::new();
    for program in programs {
        for test in program.tests("parsers::")?.into_iter().filter(|it| it.contains(only.unwrap_or_default())) {
            let mut tests = Command::new(&program.path);
            night.tell(tests.args(["--exact", &test]).current_dir(&program.folder));
            // There are more readers than processors, and what they refuse is not looked into.
            tests.env("RAYON_NUM_THREADS", "1").env("RUST_BACKTRACE", "0");
            if let Some(coverage) = &coverage {
                tests.env("LLVM_PROFILE_FILE", coverage.profile(&test));
            }
            let reader = tests.spawn().with_context(|| program.path.display().to_string())?;
            started.push((program.path.clone(), test, reader));
        }
    }
    if started.is_empty() {
        bail!("no test of a reader is called so");
    }
    let (mut failed, mut reached) = (Vec::new(), String::new());
    for (program, test, mut reader) in started {
        if !reader.wait()?.success() {
            failed.push(test);
        } else if let Some(coverage) = &coverage {
            reached += &coverage.report(&program, &test)?;
        }
    }
    tally()?;
    if let Some(coverage) = &coverage {
        println!("{reached}\nThe rest stands in {}", coverage.folder().display());
    }
    if failed.is_empty() { Ok(()) } else { bail!("{} failed", failed.join(", ")) }
}

/// Prints what the last of these has tried, or has tried so far.
pub(crate) fn tally() -> Result<()> {
    let report = report(&workspace::root())?;
    let text = fs::read_to_string(&report).unwrap_or_default();
    println!("\n{}", table(&text).with_context(|| report.display().to_string())?);
    Ok(())
}

fn report(root: &Path) -> Result<PathBuf> {
    Ok(workspace::target_dir(root)?.join("torture.tsv"))
}

/// What programs of tests are told.
struct Night {
    minutes: u64,
    seed: u64,
    report: PathBuf,
}

impl Night {
    /// One with an empty report.
    fn begins(root: &Path, minutes: u64, seed: u64) -> Result<Night> {
        let report = report(root)?;
        let _ = fs::remove_file(&report);
        Ok(Night { minutes, seed, report })
    }

    /// Tells a program of tests how long to go on, from which seed, and where to say what it did.
    fn tell(&self, tests: &mut Command) {
        tests.args(["--nocapture", "--test-threads", "12"]);
        tests.env("HALFBYTE_TORTURE_SECONDS", (60 * self.minutes).to_string());
        tests.env("HALFBYTE_TORTURE_SEED", self.seed.to_string()).env("HALFBYTE_TORTURE_REPORT", &self.report);
    }
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
    let line = |(what, (tried, seed)): (&str, (u64, &str))| format!("{tried:>13}  {what}, from seed {seed}\n");
    let all = sums.values().map(|it| it.0).sum::<u64>();
    Ok(sums.into_iter().map(line).chain([format!("{all:>13}  in all\n")]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_a_kind_are_added_up() {
        let found = table("kills\t20\t1\nfaults\t7\t1\nkills\t3\t1\n").unwrap();
        assert_eq!(
            found,
            "            7  faults, from seed 1\n           23  kills, from seed 1\n           30  in all\n"
        );
    }

    #[test]
    fn no_reader_is_left_out() {
        let meta = workspace::metadata(&workspace::root()).unwrap();
        let has_parsers = |manifest: &str| {
            let mut open =
                vec![Path::new(manifest).parent().unwrap().join("src"), Path::new(manifest).with_file_name("tests")];
            while let Some(dir) = open.pop() {
                for it in fs::read_dir(dir).into_iter().flatten().flatten() {
                    if it.file_name() == "parsers.rs" {
                        return true;
                    }
                    open.extend(it.file_type().unwrap().is_dir().then(|| it.path()));
                }
            }
            false
        };
        let packages = meta["packages"].as_array().unwrap().iter();
        let all = packages.filter(|it| has_parsers(it["manifest_path"].as_str().unwrap()));
        let mut names: Vec<&str> = all.map(|it| it["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, READERS);
    }
}
