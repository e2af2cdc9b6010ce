//! `cargo xtask parity`: Halfbyte beside transformers, peft and bitsandbytes, claim by claim, into `docs/parity.md`.
//!
//! What small models can show is shown by the tests, on fixtures that the Python stack has just made again; this program
//! runs them, and then what takes a real model.

pub(crate) mod folders;
mod report;
mod stack;
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{python::Python, workspace};
use report::Report;
use stack::Stack;

/// How many generated folders are compared, and from which seed.
const FOLDERS: usize = 300;
const SEED: usize = 2;

/// What the user chose.
pub(crate) struct Options {
    /// A virtual environment with `tests/reference/requirements.txt`.
    pub(crate) python: PathBuf,
    pub(crate) model: PathBuf,
    pub(crate) train: PathBuf,
    pub(crate) test: PathBuf,
}

/// Makes `tests/fixtures` again.
pub(crate) fn fixtures(venv: &Path) -> Result<()> {
    let root = workspace::root();
    let out = root.join("tests/fixtures");
    make_fixtures(venv, &root, &out, None)?;
    println!("written to {}", out.display());
    Ok(())
}

fn make_fixtures(venv: &Path, root: &Path, out: &Path, model: Option<&Path>) -> Result<()> {
    let mut args = vec![out.display().to_string()];
    args.extend(model.map(|it| it.display().to_string()));
    Python::new(venv, root, "fixtures.py")?.run(&args)?;
    Ok(())
}

/// Compares everything and writes the report.
pub(crate) fn run(options: &Options) -> Result<()> {
    for path in [&options.model, &options.train, &options.test] {
        if !path.exists() {
            bail!("{} does not exist", path.display());
        }
    }
    let root = workspace::root();
    let scratch = workspace::target_dir(&root)?.join("parity");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    }
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let mut report = Report::default();
    let made = scratch.join("fixtures");
    println!("fixtures");
    make_fixtures(&options.python, &root, &made, Some(&options.model))?;
    tests::run(&root, &made, &mut report)?;
    let stack = Stack {
        halfbyte: workspace::build_halfbyte(&root)?,
        python: Python::new(&options.python, &root, "parity.py")?,
        model: options.model.clone(),
        train: options.train.clone(),
        test: options.test.clone(),
        fixtures: made,
        scratch,
    };
    stack.run(&mut report)?;
    println!("folders");
    let tally = folders::compare(&stack.halfbyte, &options.python, &stack.scratch.join("folders"), (FOLDERS, SEED))?;
    tally.report(&mut report, &format!("cargo xtask folders --count {FOLDERS} --seed {SEED}"));
    let path = root.join("docs/parity.md");
    report.write(&path)?;
    println!("\n{}\nwritten to {}", report.tables(), path.display());
    if !report.holds() {
        bail!("not every claim holds; {} says which", path.display());
    }
    Ok(())
}
