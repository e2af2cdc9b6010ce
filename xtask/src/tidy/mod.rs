//! `cargo xtask tidy`: the rules of `docs/architecture.md` that a compiler does not know, checked on every change.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{supply, workspace};

mod layers;
mod lexer;
mod paths;
mod seams;
mod sources;
#[cfg(test)]
mod tests;
mod unsafe_count;

/// One broken rule: where, and what to do about it.
type Violation = String;

/// Files and folders at the root that are nobody's source: build outputs and runs, as in `.gitignore`, and git's own.
const PASSED_OVER: &[&str] = &["target", "out", "runs", ".git"];

/// Checks the workspace that this program belongs to; prints each violation. With `write` what documents count is written anew first.
pub(crate) fn run(write: bool) -> Result<()> {
    let root = workspace::root();
    if write {
        unsafe_count::write(&root, &files(&root)?)?;
    }
    let mut violations = check(&root, &workspace::metadata(&root)?)?;
    violations.extend(supply::violations(&root)?);
    violations.extend(unsafe_count::check(&root, &files(&root)?)?);
    for violation in &violations {
        println!("tidy: {violation}");
    }
    if !violations.is_empty() {
        bail!("tidy found {} violation(s), listed above", violations.len());
    }
    println!("tidy: ok");
    Ok(())
}

/// Every rule, over the tree at `root` whose members `metadata` describes.
fn check(root: &Path, metadata: &serde_json::Value) -> Result<Vec<Violation>> {
    let files = files(root)?;
    let mut violations = layers::check(root, metadata)?;
    for file in &files {
        let text =
            || std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()));
        match file.extension().and_then(|e| e.to_str()) {
            Some("rs") => {
                sources::check_rust(file, &text()?, &mut violations);
                seams::check(file, &text()?, &mut violations);
            }
            Some("cu") => sources::check_length(file, &text()?, &mut violations),
            Some("md") if paths::is_documentation(file) => paths::check(root, file, &text()?, &mut violations),
            _ => {}
        }
    }
    Ok(violations)
}

/// All files below `root`, relative to it, in the order of their names.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let here = root.join(&folder);
        for entry in std::fs::read_dir(&here).with_context(|| format!("cannot list {}", here.display()))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if PASSED_OVER.iter().any(|p| path == Path::new(p)) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
