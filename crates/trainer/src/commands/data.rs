//! `halfbyte data`: what a training would see of its rows, before anything is loaded.

use crate::{
    cli::DataArgs,
    console, load,
    sources::{Loaded, Rows},
    templates::Voice,
};
use halfbyte_data::{Dataset, IGNORE, Part, Row, Tokenizer};
use serde_json::json;
use std::io::{self, IsTerminal, Write};

/// Rows token by token with what is learned of them, and how long they are.
pub(crate) fn data(args: &DataArgs) -> anyhow::Result<()> {
    let base = load::open(&args.model, &[])?;
    let rows = Rows::named(&args.read, Part::Train, (&base, &[Voice::of_base(&base)]))?;
    let Loaded { dataset, report, lines, .. } = rows.load(&base.tokenizer)?;
    let mut out = io::stdout().lock();
    if args.json {
        for row in dataset.rows().take(args.samples) {
            let learned: Vec<bool> = (0..row.ids.len()).map(|t| t > 0 && row.trained(t)).collect();
            writeln!(out, "{}", json!({ "ids": row.ids, "trained": learned }))?;
        }
        return Ok(());
    }
    let in_colour = out.is_terminal();
    for (number, row) in dataset.rows().take(args.samples).enumerate() {
        writeln!(out, "example {number}: {} tokens, {} of them learned", row.ids.len(), learned(&row))?;
        writeln!(out, "{}\n", shown(&row, &base.tokenizer, in_colour)?)?;
    }
    for line in lines {
        writeln!(out, "{line}")?;
    }
    for line in histogram(&dataset, args.read.max_length) {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    report.warnings().iter().for_each(|it| console::warn(it));
    Ok(())
}

fn learned(row: &Row<'_>) -> usize {
    (0..row.ids.len()).filter(|t| row.target(*t) != IGNORE).count()
}

/// The tokens with bars between them; those that are learned in green, or between double brackets where there is no colour.
fn shown(row: &Row<'_>, tokenizer: &Tokenizer, in_colour: bool) -> anyhow::Result<String> {
    let (begin, end) = if in_colour { ("\x1b[32m", "\x1b[0m") } else { ("[[", "]]") };
    let bar = if in_colour { "\x1b[2m|\x1b[22m" } else { "|" };
    let (mut text, mut before) = (String::new(), false);
    for (t, id) in row.ids.iter().enumerate() {
        let now = t > 0 && row.trained(t);
        if before && !now {
            text += end;
        }
        if t > 0 {
            text += bar;
        }
        if now && !before {
            text += begin;
        }
        let token = tokenizer.decode(&[*id], false)?;
        // A part of a character is shown by its name in the vocabulary.
        let whole = !token.is_empty() && !token.contains(char::REPLACEMENT_CHARACTER);
        text += &if whole { token } else { tokenizer.id_to_token(*id).unwrap_or_default() };
        before = now;
    }
    if before {
        text += end;
    }
    Ok(text)
}

/// How many examples have how many tokens.
fn histogram(dataset: &Dataset, max_length: usize) -> Vec<String> {
    const BARS: usize = 12;
    const WIDTH: usize = 40;
    let longest = dataset.longest();
    let step = longest.div_ceil(BARS).max(1);
    let mut counts = vec![0usize; longest.div_ceil(step).max(1)];
    for index in 0..dataset.len() {
        counts[(dataset.length(index).max(1) - 1) / step] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let digits = longest.to_string().len();
    let line = |(at, count): (usize, &usize)| {
        let (from, to) = (at * step + 1, ((at + 1) * step).min(longest));
        let bar = "#".repeat((count * WIDTH).div_ceil(most));
        format!("{from:>digits$} to {to:>digits$} tokens  {count:>8}  {bar}")
    };
    let mean = dataset.tokens() as f64 / dataset.len().max(1) as f64;
    let mut lines: Vec<String> = counts.iter().enumerate().map(line).collect();
    lines.push(format!(
        "{} examples, {mean:.0} tokens on average, {longest} at most (--max-length {max_length})",
        dataset.len()
    ));
    lines
}
