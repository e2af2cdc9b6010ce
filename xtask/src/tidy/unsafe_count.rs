//! How often each crate says `unsafe`: a table in a document, which is compared with the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Violation;
use super::lexer::{self, has_word};

/// Where the table stands.
const DOCUMENT: &str = "docs/promises.md";
/// The lines around it.
const BEGINS: &str = "<!-- unsafe: written by `cargo xtask tidy --write` -->";
const ENDS: &str = "<!-- end of unsafe -->";

/// A violation if the table is not that of the sources.
pub(super) fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<Violation>> {
    let (text, new) = texts(root, files)?;
    let stale = || format!("{DOCUMENT}: the counts of `unsafe` are not those of the sources: cargo xtask tidy --write");
    Ok((text != new).then(stale).into_iter().collect())
}

/// Writes the table.
pub(super) fn write(root: &Path, files: &[PathBuf]) -> Result<()> {
    let (_, new) = texts(root, files)?;
    std::fs::write(root.join(DOCUMENT), new).with_context(|| format!("cannot write {DOCUMENT}"))
}

/// The document as it is, and as it should be.
fn texts(root: &Path, files: &[PathBuf]) -> Result<(String, String)> {
    let text = std::fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let missing = || format!("{DOCUMENT} has no table between `{BEGINS}` and `{ENDS}`");
    let (before, rest) = text.split_once(BEGINS).with_context(missing)?;
    let (_, after) = rest.split_once(ENDS).with_context(missing)?;
    let new = format!("{before}{BEGINS}\n{}{ENDS}{after}", table(&counts(root, files)?));
    Ok((text, new))
}

/// By crate: in what is built into programs, and in tests.
fn counts(root: &Path, files: &[PathBuf]) -> Result<BTreeMap<String, [usize; 2]>> {
    let mut counts = BTreeMap::new();
    for file in files.iter().filter(|it| it.extension().is_some_and(|it| it == "rs")) {
        let text =
            std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        let said = said(file, &text);
        if said != [0, 0] {
            let sum: &mut [usize; 2] = counts.entry(owner(file)).or_default();
            *sum = [sum[0] + said[0], sum[1] + said[1]];
        }
    }
    Ok(counts)
}

/// The crate that a file belongs to.
fn owner(file: &Path) -> String {
    let mut parts = file.iter().map(|it| it.to_string_lossy().into_owned());
    match parts.next() {
        Some(first) if first == "crates" => parts.next().unwrap_or_default(),
        first => first.unwrap_or_default(),
    }
}

/// How often a file says it, and how often in its tests.
fn said(file: &Path, text: &str) -> [usize; 2] {
    let is_test = |it: &std::ffi::OsStr| ["tests", "tests.rs", "benches", "testkit"].iter().any(|name| it == *name);
    let mut in_tests = file.iter().any(is_test);
    let mut said = [0, 0];
    for line in lexer::lines(text) {
        // A file's tests are at its end.
        in_tests |= line.code.contains("#[cfg(test)]") && !line.code.contains("use ");
        if has_word(&line.code, "unsafe") {
            said[usize::from(in_tests)] += line.code.matches("unsafe").count();
        }
    }
    said
}

fn table(counts: &BTreeMap<String, [usize; 2]>) -> String {
    let mut text = String::from("| Crate | in programs | in tests |\n|---|---|---|\n");
    for (name, [in_programs, in_tests]) in counts {
        text += &format!("| `{name}` | {in_programs} | {in_tests} |\n");
    }
    let sum = |at: usize| counts.values().map(|it| it[at]).sum::<usize>();
    text + &format!("| all | {} | {} |\n", sum(0), sum(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say_is_counted_apart_from_what_tests_say() {
        let text =
            "unsafe fn f() {} // unsafe\nlet x = unsafe { g() };\n#[cfg(test)]\nmod tests {\n    unsafe { f() }\n}\n";
        assert_eq!(said(Path::new("crates/codec/src/lib.rs"), text), [2, 1]);
        assert_eq!(said(Path::new("crates/codec/tests/all.rs"), text), [0, 3]);
        let counts = BTreeMap::from([("codec".to_owned(), [2, 1]), ("e2e".to_owned(), [0, 4])]);
        assert!(table(&counts).ends_with("| `codec` | 2 | 1 |\n| `e2e` | 0 | 4 |\n| all | 2 | 5 |\n"));
    }

    #[test]
    fn a_stale_table_is_found_and_written_anew() {
        let root = std::env::temp_dir().join(format!("halfbyte-tidy-count-{}", std::process::id()));
        std::fs::create_dir_all(root.join("docs")).unwrap();
        std::fs::write(root.join("lib.rs"), "unsafe fn f() {}\n").unwrap();
        std::fs::write(root.join(DOCUMENT), format!("before\n{BEGINS}\nold\n{ENDS}\nafter\n")).unwrap();
        let files = [PathBuf::from("lib.rs")];
        assert_eq!(check(&root, &files).unwrap().len(), 1);
        write(&root, &files).unwrap();
        assert_eq!(check(&root, &files).unwrap(), [] as [String; 0]);
        let text = std::fs::read_to_string(root.join(DOCUMENT)).unwrap();
        assert!(text.starts_with("before\n") && text.ends_with("\nafter\n") && text.contains("| all | 1 | 0 |"));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
