//! `cargo xtask reproducible`: the same sources give the same program, wherever they lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::{self, cargo, check};

/// Builds what git knows of the tree in two folders below `within`, and compares the programs.
pub(crate) fn run(within: &Path, profile: &str, package: &str) -> Result<()> {
    std::fs::create_dir(within).with_context(|| format!("{}: must be new", within.display()))?;
    let within = within.canonicalize()?;
    let root = workspace::root();
    let mut programs = Vec::new();
    for name in ["here", "somewhere-else"] {
        let folder = within.join(name);
        copy(&root, &folder)?;
        programs.push(build(&folder, profile, package)?);
    }
    let [first, second] = [&programs[0], &programs[1]].map(std::fs::read);
    let (first, second) = (first?, second?);
    if first != second {
        let differ = first.iter().zip(&second).filter(|(a, b)| a != b).count();
        bail!(
            "the programs differ, in {differ} bytes of {} and {}: {} and {}",
            first.len(),
            second.len(),
            programs[0].display(),
            programs[1].display()
        );
    }
    println!("two builds in two folders, one program of {} bytes", first.len());
    std::fs::remove_dir_all(&within).with_context(|| within.display().to_string())
}

/// The files that git knows, as they are in the tree.
fn copy(root: &Path, to: &Path) -> Result<()> {
    let listed = std::process::Command::new("git").args(["ls-files", "-z"]).current_dir(root).output()?;
    if !listed.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr).trim());
    }
    let names = String::from_utf8(listed.stdout).context("names that are no text")?;
    for name in names.split_terminator('\0').filter(|it| root.join(it).is_file()) {
        let target = to.join(name);
        std::fs::create_dir_all(target.parent().context("a file lies in a folder")?)?;
        std::fs::copy(root.join(name), &target).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// Where sources lie is not to stand in the program.
fn build(folder: &Path, profile: &str, package: &str) -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|it| it.join(".cargo"))).context("no home of cargo's")?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [remap(folder, "/halfbyte"), remap(&home, "/cargo")].join("\u{1f}");
    let prefixes =
        format!("-ffile-prefix-map={}=/halfbyte -ffile-prefix-map={}=/cargo", folder.display(), home.display());
    let target = folder.join("target");
    let mut cmd = cargo();
    cmd.args(["build", "--locked", "--package", package, "--profile", profile, "--target-dir"]).arg(&target);
    cmd.env("CARGO_ENCODED_RUSTFLAGS", flags).env("CFLAGS", &prefixes).env("CXXFLAGS", &prefixes);
    check(cmd.env("CARGO_INCREMENTAL", "0").current_dir(folder))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    let name = if package == "halfbyte-trainer" { "halfbyte" } else { package };
    Ok(target.join(folder).join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}
