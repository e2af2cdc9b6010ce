//! Where the workspace is, what is in it, and how its cargo is called.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The root folder: the parent of xtask's own package, wherever the user stands.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo run`; the value of build time serves when the binary is started by hand.
    let here =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().expect("the manifest of xtask lies one folder below the root").to_path_buf()
}

/// The cargo that started us, so that a chosen toolchain stays chosen.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for variable in told_by_cargo() {
        cargo.env_remove(variable);
    }
    cargo
}

/// The variables in which cargo tells this program of its own package. They are not for those that are built: ring would be built anew
/// for them, and all that depends on it.
pub(crate) fn told_by_cargo() -> impl Iterator<Item = OsString> {
    let is_told =
        |it: &OsString| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|begin| it.to_string_lossy().starts_with(begin));
    std::env::vars_os().map(|it| it.0).filter(is_told)
}

/// What `cargo metadata` says about the members of the workspace at `root`; no network, no resolution.
pub(crate) fn metadata(root: &Path) -> Result<Value> {
    let mut cmd = cargo();
    cmd.args(["metadata", "--format-version", "1", "--no-deps"]).current_dir(root);
    let out = cmd.output().with_context(|| format!("cannot start {cmd:?}"))?;
    if !out.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    serde_json::from_slice(&out.stdout).context("cargo metadata printed something that is not JSON")
}

/// The folder that cargo builds into, whatever the environment or a configuration file made of it.
pub(crate) fn target_dir(root: &Path) -> Result<PathBuf> {
    let meta = metadata(root)?;
    let dir = meta["target_directory"].as_str().context("cargo metadata named no target_directory")?;
    Ok(PathBuf::from(dir))
}

/// Builds the trainer in release, cargo's progress going to the terminal, and returns the path of `halfbyte`.
pub(crate) fn build_halfbyte(root: &Path) -> Result<PathBuf> {
    build_with(root, &[])
}

/// As [`build_halfbyte`], but without the half for the network, a minute of CPU, unless that is built already: a program that can
/// ask the hub is not replaced by one that cannot.
pub(crate) fn build_halfbyte_offline(root: &Path) -> Result<PathBuf> {
    let built = std::fs::read_dir(target_dir(root)?.join("release").join("deps")).into_iter().flatten().flatten();
    let has_network = built.into_iter().any(|it| it.file_name().to_string_lossy().starts_with("libureq-"));
    build_with(root, if has_network { &[] } else { &["--no-default-features"] })
}

fn build_with(root: &Path, more: &[&str]) -> Result<PathBuf> {
    let mut cmd = cargo();
    cmd.args(["build", "--release", "--locked", "--package", "halfbyte-trainer"]).args(more).current_dir(root);
    check(&mut cmd)?;
    let exe = format!("halfbyte{}", std::env::consts::EXE_SUFFIX);
    Ok(target_dir(root)?.join("release").join(exe))
}

/// A file that takes everything and keeps nothing.
pub(crate) const NOWHERE: &str = if cfg!(windows) { "NUL" } else { "/dev/null" };

/// A program of tests that cargo built.
pub(crate) struct TestProgram {
    /// The name of its target.
    pub(crate) target: String,
    pub(crate) path: PathBuf,
    /// Its package's folder, where cargo would run it.
    pub(crate) folder: PathBuf,
}

impl TestProgram {
    /// The names of its tests that hold a text.
    pub(crate) fn tests(&self, filter: &str) -> Result<Vec<String>> {
        let mut cmd = Command::new(&self.path);
        // One that counts what it comes by would leave a file here.
        cmd.env("LLVM_PROFILE_FILE", NOWHERE);
        let out = cmd.args(["--list", filter]).current_dir(&self.folder).output();
        let out = out.with_context(|| format!("cannot start {}", self.path.display()))?;
        let text = String::from_utf8_lossy(&out.stdout);
        Ok(text.lines().filter_map(|it| it.strip_suffix(": test")).map(str::to_owned).collect())
    }
}

/// Builds tests as a `cargo test` does, and gives their programs.
pub(crate) fn test_programs(root: &Path, mut cmd: Command) -> Result<Vec<TestProgram>> {
    cmd.args(["--locked", "--no-run", "--message-format", "json-render-diagnostics"]);
    let out = cmd.current_dir(root).stderr(Stdio::inherit()).output().context("cargo test does not start")?;
    if !out.status.success() {
        bail!("`{}` ended with {}", shown(&cmd), out.status);
    }
    let program = |line: &[u8]| {
        let message: Value = serde_json::from_slice(line).ok().filter(|it: &Value| it["profile"]["test"] == true)?;
        let text = |it: &Value| it.as_str().map(str::to_owned);
        Some(TestProgram {
            target: text(&message["target"]["name"])?,
            path: text(&message["executable"])?.into(),
            folder: Path::new(message["manifest_path"].as_str()?).parent()?.into(),
        })
    };
    Ok(out.stdout.split(|it| *it == b'\n').filter_map(program).collect())
}

/// Runs a command with the terminal inherited; anything but success is an error that shows the command.
pub(crate) fn check(cmd: &mut Command) -> Result<()> {
    let status = cmd.status().with_context(|| format!("cannot start `{}`", shown(cmd)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(cmd));
    }
    Ok(())
}

/// The command as one would type it.
pub(crate) fn shown(cmd: &Command) -> String {
    let program = Path::new(cmd.get_program()).file_stem().unwrap_or(cmd.get_program());
    let mut words = vec![program.to_string_lossy().into_owned()];
    for arg in cmd.get_args().map(|a| a.to_string_lossy()) {
        let plain = !arg.is_empty() && !arg.contains([' ', '"', '\'', '*', '$', '&', ';', '|']);
        words.push(if plain { arg.into_owned() } else { format!("'{arg}'") });
    }
    words.join(" ")
}
