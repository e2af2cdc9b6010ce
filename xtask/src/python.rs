//! The Python stack that Halfbyte is compared with: a script of `tests/reference`, run in a virtual environment.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::shown;

/// A script and the interpreter that runs it.
#[derive(Clone)]
pub(crate) struct Python {
    interpreter: PathBuf,
    script: PathBuf,
}

impl Python {
    /// `script` is a file of `tests/reference`.
    pub(crate) fn new(venv: &Path, root: &Path, script: &str) -> Result<Python> {
        let interpreter = venv.join("bin/python");
        if !interpreter.exists() {
            bail!(
                "{} does not exist; --python wants a virtual environment (tests/reference/requirements.txt)",
                interpreter.display()
            );
        }
        Ok(Python { interpreter, script: root.join("tests/reference").join(script) })
    }

    /// Runs the script to its end; its last JSON line, and the seconds after which its first came.
    pub(crate) fn run(&self, args: &[String]) -> Result<(Value, f64)> {
        let mut cmd = Command::new(&self.interpreter);
        cmd.arg(&self.script).args(args);
        cmd.env("HF_HUB_OFFLINE", "1").stdout(Stdio::piped()).stderr(Stdio::null());
        let begun = Instant::now();
        let mut child = cmd.spawn().with_context(|| format!("cannot start `{}`", shown(&cmd)))?;
        let out = child.stdout.take().context("the output of the Python stack is piped")?;
        let (mut first, mut last) = (0.0, Value::Null);
        for line in BufReader::new(out).lines() {
            if let Ok(value) = serde_json::from_str(&line?) {
                if last.is_null() {
                    first = begun.elapsed().as_secs_f64();
                }
                last = value;
            }
        }
        if !child.wait()?.success() {
            bail!("`{}` failed; run it by hand to see why", shown(&cmd));
        }
        Ok((last, first))
    }
}
