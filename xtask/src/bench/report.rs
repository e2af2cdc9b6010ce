//! The table of figures beside their goals.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What must hold for a figure.
#[derive(Clone, Copy)]
enum Goal {
    /// Ours at least so many times the peer's.
    Times(f64),
    /// Ours at most one so-manieth of the peer's.
    Share(f64),
    AtLeast(f64),
    AtMost(f64),
    None,
}

/// One figure.
pub(super) struct Row {
    name: String,
    unit: &'static str,
    ours: Option<f64>,
    peer: Option<f64>,
    goal: Goal,
    note: String,
}

impl Row {
    pub(super) fn faster(name: &str, unit: &'static str, figures: (Option<f64>, Option<f64>), times: f64) -> Row {
        Row::new(name, unit, figures, Goal::Times(times))
    }

    pub(super) fn less(name: &str, unit: &'static str, figures: (Option<f64>, Option<f64>), share: f64) -> Row {
        Row::new(name, unit, figures, Goal::Share(share))
    }

    pub(super) fn at_least(name: &str, unit: &'static str, figures: (Option<f64>, Option<f64>), least: f64) -> Row {
        Row::new(name, unit, figures, Goal::AtLeast(least))
    }

    pub(super) fn at_most(name: &str, unit: &'static str, ours: f64, most: f64) -> Row {
        Row::new(name, unit, (Some(ours), None), Goal::AtMost(most))
    }

    pub(super) fn seen(name: &str, unit: &'static str, ours: f64) -> Row {
        Row::new(name, unit, (Some(ours), None), Goal::None)
    }

    fn new(name: &str, unit: &'static str, (ours, peer): (Option<f64>, Option<f64>), goal: Goal) -> Row {
        Row { name: name.to_owned(), unit, ours, peer, goal, note: String::new() }
    }

    pub(super) fn note(self, note: String) -> Row {
        Row { note, ..self }
    }

    /// Ours against the peer's, above 1 where ours is better.
    fn ratio(&self) -> Option<f64> {
        let (ours, peer) = (self.ours?, self.peer?);
        Some(if matches!(self.goal, Goal::Share(_)) { peer / ours } else { ours / peer })
    }

    fn met(&self) -> Option<bool> {
        match self.goal {
            Goal::Times(least) | Goal::Share(least) => self.ratio().map(|it| it >= least),
            Goal::AtLeast(least) => self.ours.map(|it| it >= least),
            Goal::AtMost(most) => self.ours.map(|it| it <= most),
            Goal::None => None,
        }
    }

    fn line(&self) -> String {
        let figure = |value: Option<f64>| value.map_or("–".into(), |it| format!("{} {}", digits(it), self.unit));
        let goal = match self.goal {
            Goal::Times(it) => format!("≥ {it} ×"),
            Goal::Share(it) => format!("≤ 1/{it}"),
            Goal::AtLeast(it) => format!("≥ {it} {}", self.unit),
            Goal::AtMost(it) => format!("≤ {it} {}", self.unit),
            Goal::None => "–".into(),
        };
        let ratio = match (self.ratio(), self.goal) {
            (None, _) => "–".into(),
            (Some(it), Goal::Share(_)) => format!("1/{it:.1}"),
            (Some(it), _) => format!("{it:.2} ×"),
        };
        let met = match self.met() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "–",
        };
        let (name, note) = (&self.name, &self.note);
        format!("| {name} | {} | {} | {ratio} | {goal} | {met} | {note} |", figure(self.ours), figure(self.peer))
    }
}

/// Three digits that count.
fn digits(value: f64) -> String {
    let places = (2 - value.abs().max(1e-3).log10().floor() as i32).clamp(0, 3) as usize;
    format!("{value:.places$}")
}

/// All figures of one run.
pub(super) struct Report {
    machine: String,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(machine: String) -> Report {
        Report { machine, rows: Vec::new() }
    }

    pub(super) fn push(&mut self, row: Row) {
        println!("{}", row.line());
        self.rows.push(row);
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "| Figure | Halfbyte | Python stack | Ratio | Goal | Met | Beside it |\n|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.line());
        }
        text
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = format!(
            "# Benchmarks on a CPU\n\n\
             {}. Written by\n\n\
             ```sh\n\
             cargo xtask bench --model SMOLLM2_135M --data IMDB.parquet --python VENV --large DIR\n\
             ```\n\n\
             Medians of rounds in which Halfbyte and transformers + peft + bitsandbytes (`tests/reference`) take turns on the same work:\n\
             SmolLM2-135M, rank 16 on all linear layers, steps of 4 x 128 tokens. [performance.md](../performance.md) says where the\n\
             time goes, and what stands in the way where a goal is missed.\n\n{}",
            self.machine,
            self.table()
        );
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_its_goal_is_met() {
        let line = Row::faster("speed", "tokens/s", (Some(480.0), Some(200.0)), 3.0).line();
        assert_eq!(line, "| speed | 480 tokens/s | 200 tokens/s | 2.40 × | ≥ 3 × | no |  |");
        let line = Row::less("memory", "MiB", (Some(400.0), Some(2650.0)), 6.0).line();
        assert_eq!(line, "| memory | 400 MiB | 2650 MiB | 1/6.6 | ≤ 1/6 | yes |  |");
        let line = Row::at_most("time", "%", 41.25, 40.0).note("why".into()).line();
        assert_eq!(line, "| time | 41.2 % | – | – | ≤ 40 % | no | why |");
        let line = Row::faster("alone", "tokens/s", (Some(4.0), None), 3.0).line();
        assert_eq!(line, "| alone | 4.00 tokens/s | – | – | ≥ 3 × | – |  |", "without a peer nothing is claimed");
    }
}
