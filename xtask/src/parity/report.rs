//! `docs/parity.md`: a row for each comparison, under the claim that it supports.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What Halfbyte says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Claim {
    Formats,
    Checkpoints,
    Adapters,
    Models,
    Training,
    Quantisation,
    Merge,
    Folders,
}

impl Claim {
    const ALL: [Claim; 8] = [
        Claim::Formats,
        Claim::Checkpoints,
        Claim::Adapters,
        Claim::Models,
        Claim::Training,
        Claim::Quantisation,
        Claim::Merge,
        Claim::Folders,
    ];

    fn title(self) -> &'static str {
        match self {
            Claim::Formats => "1. Formats, bit for bit",
            Claim::Checkpoints => "2. bitsandbytes checkpoints, both ways",
            Claim::Adapters => "3. PEFT adapters, both ways",
            Claim::Models => "4. Forward and backward against transformers, in f32",
            Claim::Training => "5. Training against peft",
            Claim::Quantisation => "6. What quantisation costs",
            Claim::Merge => "7. Merged models",
            Claim::Folders => "8. Folders as no single tool writes them",
        }
    }
}

pub(super) struct Row {
    what: String,
    tolerance: String,
    measured: String,
    holds: bool,
    command: String,
}

impl Row {
    /// A relative error and what is allowed.
    pub(super) fn relative(what: &str, error: f64, allowed: f64, command: &str) -> Row {
        Row {
            what: what.to_owned(),
            tolerance: format!("{allowed:.0e}"),
            measured: format!("{error:.1e}"),
            holds: error <= allowed,
            command: command.to_owned(),
        }
    }

    /// What a test suite proves as a whole.
    pub(super) fn proved(what: &str, tests: usize, holds: bool, command: &str) -> Row {
        Row {
            what: what.to_owned(),
            tolerance: "all pass".into(),
            measured: format!("{tests} tests {}", if holds { "pass" } else { "pass, others fail" }),
            holds: holds && tests > 0,
            command: command.to_owned(),
        }
    }

    /// Anything else.
    pub(super) fn seen(what: &str, tolerance: &str, measured: String, holds: bool, command: &str) -> Row {
        Row { what: what.to_owned(), tolerance: tolerance.to_owned(), measured, holds, command: command.to_owned() }
    }
}

#[derive(Default)]
pub(super) struct Report {
    rows: Vec<(Claim, Row)>,
}

impl Report {
    pub(super) fn push(&mut self, claim: Claim, row: Row) {
        println!("  {}: {} (allowed {})", row.what, row.measured, row.tolerance);
        self.rows.push((claim, row));
    }

    pub(super) fn holds(&self) -> bool {
        self.rows.iter().all(|it| it.1.holds)
    }

    pub(super) fn tables(&self) -> String {
        let mut text = String::new();
        for claim in Claim::ALL {
            let _ = write!(
                text,
                "\n## {}\n\n| What | Tolerance | Measured | Holds | Command |\n|---|---|---|---|---|\n",
                claim.title()
            );
            for (_, row) in self.rows.iter().filter(|it| it.0 == claim) {
                let Row { what, tolerance, measured, holds, command } = row;
                let holds = if *holds { "yes" } else { "no" };
                let _ = writeln!(text, "| {what} | {tolerance} | {measured} | {holds} | `{command}` |");
            }
        }
        text
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let head = "# The same numbers as transformers + peft + bitsandbytes

Written by

```sh
cargo xtask parity --python VENV --model SMOLLM2_135M --train IMDB_TRAIN.parquet --test IMDB_TEST.parquet
```

with the Python packages of `tests/reference/requirements.txt`. Errors are relative unless a unit is named. Rows whose command is
`cargo test` run in CI, too, on `tests/fixtures`, which `cargo xtask fixtures --python VENV` makes; for this page the fixtures were
made anew, and hold SmolLM2-135M (`existing`) beside the small random models. `parity.py` is `tests/reference/parity.py`.
[numerics.md](numerics.md) says where Halfbyte differs on purpose.
";
        fs::write(path, format!("{head}{}", self.tables())).with_context(|| path.display().to_string())
    }
}
