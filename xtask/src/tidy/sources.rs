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
    check_names(file, &lines, violations);
    let home = may_be_unsafe(file);
    for (i, line) in lines.iter().enumerate() {
        let at = format!("{}:{}", file.display(), i + 1);
        let code = line.code.as_str();
        if has_word(code, "unsafe") {
            if !home {
                violations.push(format!(
                    "{at}: unsafe belongs in crates/cuda, in a kernels folder of a crate, or in a file named alloc.rs, cuda.rs, mmap.rs or ptrace.rs"
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

/// Names that models give their weights.
const WEIGHT_NAMES: &[&str] = &[
    "embed_tokens",
    "lm_head",
    "wte",
    "wpe",
    "ln_f",
    "ln_1",
    "ln_2",
    "input_layernorm",
    "post_attention_layernorm",
    "q_norm",
    "k_norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "out_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "c_fc",
    "c_proj",
];
/// Where they may stand: the models, the formats of files, PEFT's own rules about names, and what a user would type.
const WEIGHT_HOMES: &[&str] = &[
    "crates/models",
    "crates/frozen",
    "crates/lora/src/targets.rs",
    "crates/lora/src/config_json.rs",
    "xtask/src/parity",
    "xtask/src/tidy",
];

/// A weight is known by its role; who goes by its name is wrong about the next model.
fn check_names(file: &Path, lines: &[Line], violations: &mut Vec<Violation>) {
    let is_test = |part: &std::ffi::OsStr| part == "tests" || part == "tests.rs" || part == "test_support.rs";
    if WEIGHT_HOMES.iter().any(|it| file.starts_with(it)) || file.iter().any(is_test) {
        return;
    }
    // A file's tests are at its end.
    let code = lines.iter().enumerate().take_while(|it| !it.1.code.contains("#[cfg(test)]"));
    for (i, line) in code {
        if let Some(name) = WEIGHT_NAMES.iter().find(|it| has_word(&line.text, it)) {
            let at = format!("{}:{}", file.display(), i + 1);
            violations
                .push(format!("{at}: `{name}` is a name of a model's; ask the model for the weight's role instead"));
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
        // The last watches processes in tests: the system has no other way to stop one at a system call.
        [.., name] => ["alloc.rs", "cuda.rs", "mmap.rs", "ptrace.rs"].contains(name),
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
