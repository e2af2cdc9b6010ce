//! Finding, running and judging the `halfbyte` binary.

use serde_json::Value;
use std::{
    env,
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

/// The binary, built from the sources as they are: one that an earlier build left behind would test yesterday's code.
static BINARY: LazyLock<PathBuf> = LazyLock::new(build);

fn build() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    // target/PROFILE/deps/TEST
    let profile_dir = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
    let profile = match profile_dir.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo told the tests of their own package is not for those that are built: ring would be built anew for it.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    // With the features that the whole workspace asks for, as the tests were built: for others much would be built once more.
    let output = cargo
        .args(["build", "--workspace", "--bin", "halfbyte", "--message-format", "json"])
        .args(["--profile", profile, "--target-dir"])
        .arg(profile_dir.parent().expect("a profile's folder lies in the target folder"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "halfbyte does not build");
    let built = output.stdout.split(|it| *it == b'\n').find_map(|line| {
        let message: Value = serde_json::from_slice(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    built.expect("cargo names the executable that it built")
}

/// A command of the binary, to be completed and run by [`run`], or by hand where a test needs the process itself.
///
/// GPUs, settings and cached models of the person who runs the tests have no say in them, and nothing is asked of the network.
pub fn halfbyte() -> Command {
    let mut command = Command::new(&*BINARY);
    command
        .env("CUDA_VISIBLE_DEVICES", "")
        .env_remove("HALFBYTE_LOG")
        // No folder can be made there.
        .env("HALFBYTE_CACHE", "/dev/null/halfbyte")
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HUB_CACHE", "/nonexistent/hub")
        .env_remove("HF_TOKEN")
        .env_remove("HALFBYTE_MATMUL_KERNEL")
        .stdin(Stdio::null());
    command
}

/// Runs `halfbyte ARGS` to its end.
pub fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Outcome {
    let mut command = halfbyte();
    command.args(args);
    Outcome::of(&mut command)
}

/// Runs `halfbyte ARGS` to its end with a limit on the address space.
pub fn run_within<A: AsRef<OsStr>>(kib: usize, args: impl IntoIterator<Item = A>) -> Outcome {
    let plain = halfbyte();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("ulimit -v {kib}; exec \"$@\""), "bash"]).arg(plain.get_program()).args(args);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Outcome::of(command.stdin(Stdio::null()))
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; none if a signal ended the process.
    pub code: Option<i32>,
    /// Results.
    pub stdout: String,
    /// Messages.
    pub stderr: String,
    command: String,
}

impl Outcome {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Outcome {
        let output = command.output().expect("halfbyte starts");
        Outcome::new(format!("{command:?}"), &output)
    }

    /// From the output of a process; `command` is for messages.
    pub fn new(command: String, output: &Output) -> Outcome {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("halfbyte prints UTF-8");
        let outcome =
            Outcome { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr), command };
        assert!(!outcome.stderr.contains("panicked"), "a panic: {outcome}");
        outcome
    }

    /// Expects exit code 0.
    #[track_caller]
    pub fn success(self) -> Outcome {
        self.ends(0, &[])
    }

    /// Expects the user's mistake: exit code 2 and a message with all of these parts.
    #[track_caller]
    pub fn user_error(self, parts: &[&str]) -> Outcome {
        self.ends(2, parts)
    }

    /// Expects a failure: exit code 1 and a message with all of these parts.
    #[track_caller]
    pub fn failure(self, parts: &[&str]) -> Outcome {
        self.ends(1, parts)
    }

    /// Expects an exit code and a text on standard error with all of these parts.
    #[track_caller]
    pub fn ends(self, code: i32, parts: &[&str]) -> Outcome {
        assert_eq!(self.code, Some(code), "exit code: {self}");
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` is not in what was said: {self}");
        }
        self
    }

    /// Standard output as one JSON object, after a success.
    #[track_caller]
    pub fn json(self) -> Value {
        let outcome = self.success();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("not JSON: {e}: {outcome}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { code, stdout, stderr, command } = self;
        write!(f, "{command}\nexit code {code:?}\n--- stdout ---\n{stdout}\n--- stderr ---\n{stderr}")
    }
}

/// Says that a test, or a part of it, does not apply on this machine.
#[allow(clippy::print_stdout, reason = "the test harness shows it to people")]
pub fn skipped(why: &str) {
    println!("skipped: {why}");
}
