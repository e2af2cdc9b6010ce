//! Model folders as no single tool writes them: Halfbyte must see what transformers and peft see, or say why not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::report::{Claim, Report, Row};
use crate::{python::Python, workspace};

/// How much the losses of a folder may differ, relatively.
const ALLOWED: f64 = 1e-4;

/// What came of the folders.
#[derive(Debug, Default)]
pub(super) struct Tally {
    agree: usize,
    both_refuse: usize,
    /// Folders and why: only transformers refuses, only Halfbyte does.
    lenient: Vec<String>,
    strict: Vec<String>,
    /// Folders on which the two differ.
    differ: Vec<String>,
    largest: f64,
}

/// Runs the comparison alone and prints what it found; `halfbyte` is the program if it is built already.
pub(crate) fn run(venv: &Path, halfbyte: Option<PathBuf>, count: usize, seed: usize) -> Result<()> {
    let root = workspace::root();
    let scratch = workspace::target_dir(&root)?.join("folders");
    let halfbyte = halfbyte.map_or_else(|| workspace::build_halfbyte(&root), Ok)?;
    let tally = compare(&halfbyte, venv, &scratch, (count, seed))?;
    for (what, list) in [("transformers alone refuses", &tally.lenient), ("Halfbyte alone refuses", &tally.strict)] {
        println!("{what}: {}", list.len());
        list.iter().for_each(|it| println!("  {it}"));
    }
    let Tally { agree, both_refuse, differ, largest, .. } = &tally;
    println!("agree: {agree}, largest difference {largest:.1e}; both refuse: {both_refuse}; differ: {}", differ.len());
    match &differ[..] {
        [] => Ok(()),
        differ => bail!("the two differ on {}", differ.join("; ")),
    }
}

/// Makes `count` folders and measures a loss on each with either program.
pub(super) fn compare(halfbyte: &Path, venv: &Path, scratch: &Path, (count, seed): (usize, usize)) -> Result<Tally> {
    if scratch.exists() {
        fs::remove_dir_all(scratch).with_context(|| scratch.display().to_string())?;
    }
    fs::create_dir_all(scratch).with_context(|| scratch.display().to_string())?;
    let python = Python::new(venv, &workspace::root(), "folders.py")?;
    python.run(&[scratch.display().to_string(), count.to_string(), seed.to_string()])?;
    let path = scratch.join("expected.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&text)?;
    let mut tally = Tally::default();
    for (name, theirs) in &expected {
        tally.add(name, theirs, measured(halfbyte, &scratch.join(name))?);
    }
    Ok(tally)
}

/// What Halfbyte printed, or its sentence.
fn measured(halfbyte: &Path, folder: &Path) -> Result<std::result::Result<Value, String>> {
    let mut command = Command::new(halfbyte);
    let flags = "eval --json --device cpu --quant none --compute-dtype f32 --per-device-eval-batch-size 1";
    command.args(flags.split(' ')).arg("--model").arg(folder).arg("--data").arg(folder.join("rows.jsonl"));
    let adapter: PathBuf = folder.join("adapter");
    if adapter.exists() {
        command.arg("--adapter").arg(adapter);
    }
    let out = command.output().with_context(|| halfbyte.display().to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    match out.status.code() {
        Some(0) => Ok(Ok(serde_json::from_slice(&out.stdout)?)),
        Some(1 | 2) => Ok(Err(said.lines().find(|it| it.starts_with("error: ")).unwrap_or("no sentence").to_owned())),
        _ => bail!("{}: {}: {said}", folder.display(), out.status),
    }
}

impl Tally {
    fn add(&mut self, name: &str, theirs: &Value, ours: std::result::Result<Value, String>) {
        let line = |it: &str| format!("{name}: {}", it.replace('\n', " "));
        match (ours, theirs["refused"].as_str()) {
            (Err(_), Some(_)) => self.both_refuse += 1,
            (Ok(_), Some(why)) => self.lenient.push(line(why)),
            (Err(why), None) => self.strict.push(line(&why)),
            (Ok(ours), None) => {
                let loss = |it: &Value| it["loss"].as_f64().unwrap_or(f64::NAN);
                let difference = (loss(&ours) / loss(theirs) - 1.0).abs();
                if ours["tokens"] == theirs["tokens"] && difference <= ALLOWED {
                    self.agree += 1;
                    self.largest = self.largest.max(difference);
                } else {
                    self.differ.push(line(&format!("{ours} and {theirs}")));
                }
            }
        }
    }

    /// Puts the figures into the report.
    pub(super) fn report(&self, report: &mut Report, command: &str) {
        let all = self.agree + self.both_refuse + self.lenient.len() + self.strict.len() + self.differ.len();
        let what = format!("{all} generated folders: tokens, and loss within {ALLOWED:.0e}");
        let seen = format!(
            "{} agree (largest difference {:.1e}), {} refused by both, {} by transformers alone, {} by Halfbyte alone, {} differ",
            self.agree,
            self.largest,
            self.both_refuse,
            self.lenient.len(),
            self.strict.len(),
            self.differ.len()
        );
        report.push(Claim::Folders, Row::seen(&what, "none differs", seen, self.differ.is_empty(), command));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_folder_is_counted_once() {
        let mut tally = Tally::default();
        let ours = |loss: f64| Ok(json!({ "tokens": 3, "loss": loss }));
        tally.add("0", &json!({ "tokens": 3, "loss": 2.0 }), ours(2.00001));
        tally.add("1", &json!({ "tokens": 4, "loss": 2.0 }), ours(2.0));
        tally.add("2", &json!({ "tokens": 3, "loss": 2.0 }), ours(2.1));
        tally.add("3", &json!({ "tokens": 3, "loss": 2.0 }), Err("error: no".into()));
        tally.add("4", &json!({ "refused": "no" }), ours(2.0));
        tally.add("5", &json!({ "refused": "no" }), Err("error: no".into()));
        let counts = (tally.agree, tally.both_refuse, tally.lenient.len(), tally.strict.len(), tally.differ.len());
        assert_eq!(counts, (1, 1, 1, 1, 2));
        assert!(tally.largest > 0.0 && tally.largest < 1e-5);
    }
}
