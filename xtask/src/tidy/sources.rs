//! Rules about source files: their length, where `unsafe` may stand, and what no finished code holds.

use std::path::Path;

use super::Violation;
use super::lexer::{self, Line, has_word};

const MAX_LINES: usize = 500;
/// How far above a block its safety comment may begin: a statement can have a few lines before the block.
const SAFETY_REACH: usize = 8;

pub(super) fn check_rust(file: &Path, text: &str, violations: &mut Vec<Violation>) {
    check_length(file, text, violations);
    let lines = lexer::lines(text);
    let home = may_be_unsafe(file);
    for (i, line) in lines.iter().enumerate() {
        let at = format!("{}:{}", file.display(), i + 1);
        let code = line.code.as_str();
        if has_word(code, "unsafe") {
            if !home {
                violations.push(format!(
                    "{at}: unsafe belongs in crates/cuda, in a kernels folder of a crate, or in a file named cuda.rs or mmap.rs"
                ));
            }
            if needs_reason(&lines, i) && !has_reason(&lines, i) {
                violations.push(format!("{at}: write a `// SAFETY:` line that says why this is sound"));
            }
        }
        if code.contains("#[ignore") {
            violations
                .push(format!("{at}: no ignored tests; one that lacks its hardware says `skipped: ...` and passes"));
        }
        for stub in ["todo", "unimplemented"] {
            if has_word(code, stub) && code.contains(&format!("{stub}!")) {
                violations.push(format!("{at}: `{stub}!` is not finished code"));
            }
        }
    }
}

pub(super) fn check_length(file: &Path, text: &str, violations: &mut Vec<Violation>) {
    let lines = text.lines().count();
    if lines > MAX_LINES {
        violations.push(format!("{}: {lines} lines; split it by meaning, {MAX_LINES} is the limit", file.display()));
    }
}

fn may_be_unsafe(file: &Path) -> bool {
    let parts: Vec<_> = file.iter().filter_map(|p| p.to_str()).collect();
    match parts.as_slice() {
        ["crates", "cuda", ..] | ["crates", _, "src", "kernels", ..] => true,
        [.., name] => ["cuda.rs", "mmap.rs"].contains(name),
        [] => false,
    }
}

/// Blocks and impls promise something and must say why; an `unsafe fn`, trait or extern block only asks its callers to.
fn needs_reason(lines: &[Line], at: usize) -> bool {
    let after = lines[at].code.split("unsafe").skip(1);
    let mut words = after.map(str::trim_start).peekable();
    if words.peek().is_none() {
        return false;
    }
    words.any(|rest| {
        let rest = if rest.is_empty() { lines.get(at + 1).map_or("", |l| l.code.trim_start()) } else { rest };
        rest.starts_with('{') || rest.starts_with("impl")
    })
}

/// On the line itself, or above it before the end of an earlier statement.
fn has_reason(lines: &[Line], at: usize) -> bool {
    if lines[at].comment.contains("SAFETY:") {
        return true;
    }
    for line in lines[..at].iter().rev().take(SAFETY_REACH) {
        if line.comment.contains("SAFETY:") {
            return true;
        }
        let code = line.code.trim_end();
        let blank = code.is_empty() && line.comment.is_empty();
        if blank || code.ends_with([';', '}']) {
            return false;
        }
    }
    false
}
