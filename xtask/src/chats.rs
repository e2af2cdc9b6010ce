//! Chat templates beside transformers': the texts must be the same, byte for byte.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{python::Python, workspace};

/// Renders conversations with every `.jinja` file of a folder, here and with transformers. The templates of published models are
/// their makers', so none lies here.
pub(crate) fn run(venv: &Path, templates: &Path) -> Result<()> {
    let root = workspace::root();
    let expected = workspace::target_dir(&root)?.join("chats.json");
    let mut args = vec![expected.display().to_string()];
    args.extend(jinja_files(templates)?.iter().map(|it| it.display().to_string()));
    // Its last line is no result; that it ends well is what counts.
    Python::new(venv, &root, "chats.py")?.run(&args)?;
    let mut example = workspace::cargo();
    example.args(["run", "--quiet", "--release", "--package", "halfbyte-data", "--example", "templates", "--"]);
    workspace::check(example.arg(&expected).current_dir(&root))
}

fn jinja_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "jinja") {
            found.push(path);
        }
    }
    if found.is_empty() {
        bail!("{}: no .jinja files", folder.display());
    }
    found.sort();
    Ok(found)
}
