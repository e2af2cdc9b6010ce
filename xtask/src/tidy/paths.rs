//! Paths that the documentation names must exist: a guide that points nowhere is worse than none.

use std::path::{Path, PathBuf};

use super::Violation;

/// README files and everything under docs.
pub(super) fn is_documentation(file: &Path) -> bool {
    file.starts_with("docs") || file.file_name().is_some_and(|n| n == "README.md")
}

pub(super) fn check(root: &Path, file: &Path, text: &str, violations: &mut Vec<Violation>) {
    let mut fenced = false;
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        let named = spans(line).filter(|s| is_path(root, s)).map(|s| (s, root.to_path_buf()));
        let here = root.join(file.parent().unwrap_or(Path::new("")));
        let linked = links(line).map(|l| (l, here.clone()));
        for (path, base) in named.chain(linked) {
            if !exists(&base, path) {
                violations.push(format!("{}:{}: names `{path}`, which does not exist", file.display(), i + 1));
            }
        }
    }
}

/// What stands between backticks.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    let count = line.matches('`').count();
    // The last backtick of an odd number opens a span that this line does not close.
    line.split('`').enumerate().filter(move |(i, _)| i % 2 == 1 && *i < count).map(|(_, s)| s)
}

/// Targets of Markdown links that lie in the repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|t| !t.contains("://") && !t.starts_with(['#', '<']) && !t.starts_with("mailto:"));
    local.map(|t| t.split('#').next().unwrap_or(t)).filter(|t| !t.is_empty() && !t.contains(' '))
}

/// A path of this repository begins with something that lies in its root; other spans are code, commands or a user's files.
fn is_path(root: &Path, span: &str) -> bool {
    let Some((first, _)) = span.split_once('/') else {
        return false;
    };
    let plain = !span.contains([' ', '=', '(', ':', '"', '|']);
    plain && !first.is_empty() && first != "." && first != ".." && root.join(first).is_dir() && !is_output(first)
}

/// What a command makes is named before it exists.
fn is_output(first: &str) -> bool {
    super::PASSED_OVER.contains(&first)
}

/// Up to a placeholder such as `<name>` or `*`; of `{a,b}`, every alternative.
fn exists(base: &Path, path: &str) -> bool {
    if let Some((before, rest)) = path.split_once('{')
        && let Some((inside, after)) = rest.split_once('}')
    {
        return inside.split(',').all(|one| exists(base, &format!("{before}{}{after}", one.trim())));
    }
    let mut known = PathBuf::new();
    for part in path.split('/') {
        if part.contains(['<', '*', '…']) {
            break;
        }
        known.push(part);
    }
    base.join(known).exists()
}
