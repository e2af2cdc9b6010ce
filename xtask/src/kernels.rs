//! `cargo xtask kernels`: every CUDA kernel through NVIDIA's own compiler, for real architectures, on a machine without a GPU.
//!
//! NVRTC comes from an environment that has it, or from its PyPI wheel, which is fetched once and kept in the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Ampere, Hopper with and without the instructions that only it has, and the newest that this NVRTC knows.
const ARCHITECTURES: &str = "sm_80,sm_90,sm_90a,sm_120";
const WHEEL: &str = "nvidia-cuda-nvrtc";

/// Compiles all, or says why that could not be tried.
pub(crate) fn run(venv: Option<&Path>) -> Result<()> {
    let root = workspace::root();
    let venv = match venv {
        Some(given) => given.to_owned(),
        None => fetch(&workspace::target_dir(&root)?.join("nvrtc"))?,
    };
    compile(&root, &venv)
}

/// Compiles the kernels as a step of `ci`: without network or pip it is skipped, and says so.
pub(crate) fn run_if_possible() -> Result<()> {
    let root = workspace::root();
    match fetch(&workspace::target_dir(&root)?.join("nvrtc")) {
        Ok(venv) => compile(&root, &venv),
        Err(e) => {
            println!("skipped: {e:#}");
            Ok(())
        }
    }
}

fn compile(root: &Path, venv: &Path) -> Result<()> {
    let mut cmd = workspace::cargo();
    cmd.args(["run", "--locked", "--quiet", "--package", "halfbyte-cuda", "--example", "compile_kernels", "--"]);
    cmd.arg(ARCHITECTURES).current_dir(root).env("VIRTUAL_ENV", venv);
    cmd.arg("crates");
    workspace::check(&mut cmd)?;
    println!("all kernels compile for {ARCHITECTURES}");
    Ok(())
}

/// The wheel, unpacked as an environment has it.
fn fetch(venv: &Path) -> Result<PathBuf> {
    let packages = venv.join("lib/python3/site-packages");
    if packages.join("nvidia").exists() {
        return Ok(venv.to_owned());
    }
    fs::create_dir_all(&packages).with_context(|| packages.display().to_string())?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "--timeout", "15", "--retries", "1", "install", "--quiet"]);
    pip.args(["--no-deps", "--only-binary", ":all:", "--target"]).arg(&packages).arg(WHEEL);
    let out =
        pip.output().context("python3 with pip is needed to fetch NVRTC (or name a virtual environment: --python)")?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.lines().rfind(|it| !it.trim().is_empty()).unwrap_or_default().to_owned();
        bail!("{WHEEL} could not be fetched, since there is no network or no such package: {last}");
    }
    Ok(venv.to_owned())
}
