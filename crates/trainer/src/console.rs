//! What people see: messages and progress bars on standard error, so that standard output holds results alone. Where nobody
//! listens any more, as after `| head` or the loss of a terminal, the work goes on all the same.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal as _, Write};
use tracing_subscriber::EnvFilter;

/// Sets up logging. `HALFBYTE_LOG` overrides the level.
pub fn init(verbose: bool) {
    let level = if verbose { "info" } else { "warn" };
    let mut filter = EnvFilter::try_from_env("HALFBYTE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // They would write what they send, tokens and signatures with it.
    for crate_name in ["ureq", "ureq_proto", "rustls"] {
        filter = filter.add_directive(format!("{crate_name}=off").parse().expect("a directive"));
    }
    // A second initialisation, in tests, changes nothing.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).without_time();
    // A file and a pipe have no colours.
    let log = log.with_ansi(io::stderr().is_terminal());
    let _ = log.log_internal_errors(false).try_init();
}

/// A line for the user.
pub fn say(line: &str) {
    write(&format!("{line}\n"));
}

/// Something the user should know, though the work goes on.
pub fn warn(line: &str) {
    write(&format!("warning: {line}\n"));
}

/// Why the command failed.
pub fn error(line: &str) {
    write(&format!("error: {line}\n"));
}

fn write(text: &str) {
    // A message that cannot be delivered must not end what it is about.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// A bar over `total` bytes.
pub fn byte_bar(total: u64, what: &str) -> ProgressBar {
    let style = "{msg} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)";
    bar(total, what, style)
}

/// A bar over `total` steps, with rate and time left.
pub fn step_bar(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "[{bar:30}] {pos}/{len} ({elapsed} gone, {eta} left) {msg}")
}

fn bar(total: u64, what: &str, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(4));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes as people read them.
pub fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
