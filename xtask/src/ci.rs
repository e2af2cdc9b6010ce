//! `cargo xtask ci`: what must hold before a change is merged; the same locally and on the server.
//!
//! Cheapest first, so that a slip of formatting costs a second and not the length of the test suite.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::kernels;
use crate::supply;
use crate::tidy;
use crate::workspace::{self, cargo, check};

struct Step {
    name: &'static str,
    about: &'static str,
    action: Action,
}

enum Action {
    /// Arguments of one cargo command and what it finds in its environment.
    Cargo(&'static [&'static str], &'static [(&'static str, &'static str)]),
    Own(fn() -> Result<()>),
}

/// `test` runs with the terminal inherited and nothing after each binary, so that its closing lines stand as cargo wrote them.
const STEPS: &[Step] = &[
    Step { name: "fmt", about: "formatting", action: Action::Cargo(&["fmt", "--all", "--check"], &[]) },
    Step {
        name: "tidy",
        about: "layering, sizes, unsafe, dependencies, paths in the documentation",
        action: Action::Own(|| tidy::run(false)),
    },
    Step {
        name: "supply",
        about: "advisories, by cargo-deny where it is installed",
        action: Action::Own(|| supply::deny(false)),
    },
    Step {
        name: "clippy",
        about: "lints, warnings denied",
        action: Action::Cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
    },
    Step { name: "test", about: "all tests", action: Action::Cargo(&["test", "--locked", "--workspace"], &[]) },
    Step {
        name: "kernels",
        about: "CUDA kernels through NVRTC, where it can be had",
        action: Action::Own(kernels::run_if_possible),
    },
    Step {
        name: "doc",
        about: "documentation, warnings denied",
        action: Action::Cargo(&["doc", "--locked", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]),
    },
];

/// Runs all steps, or the one named; stops at the first that fails.
pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let root = workspace::root();
    let steps = chosen(only)?;
    let mut done: Vec<(&Step, Duration)> = Vec::new();
    for step in &steps {
        println!("\n==> {}: {}", step.name, step.about);
        let start = Instant::now();
        let result = perform(step, &root);
        let took = start.elapsed();
        done.push((step, took));
        if let Err(e) = result {
            println!("<== {} FAILED after {}", step.name, seconds(took));
            print_summary(&steps, &done, true);
            bail!("{e:#}\nci stopped at the step `{0}`; repeat it alone with: cargo xtask ci --only {0}", step.name);
        }
        println!("<== {} ok, {}", step.name, seconds(took));
    }
    print_summary(&steps, &done, false);
    Ok(())
}

fn chosen(only: Option<&str>) -> Result<Vec<&'static Step>> {
    let steps: Vec<_> = STEPS.iter().filter(|s| only.is_none_or(|name| s.name == name)).collect();
    if steps.is_empty() {
        let names: Vec<_> = STEPS.iter().map(|s| s.name).collect();
        bail!("ci has no step `{}`; the steps are {}", only.unwrap_or_default(), names.join(", "));
    }
    Ok(steps)
}

fn perform(step: &Step, root: &Path) -> Result<()> {
    match step.action {
        Action::Own(f) => f(),
        Action::Cargo(args, env) => check(cargo().args(args).envs(env.iter().copied()).current_dir(root)),
    }
}

fn print_summary(steps: &[&Step], done: &[(&Step, Duration)], failed: bool) {
    println!("\n  {:<8} {:>9}  result", "step", "time");
    for (i, step) in steps.iter().enumerate() {
        match done.get(i) {
            Some((_, took)) => {
                let result = if failed && i + 1 == done.len() { "FAILED" } else { "ok" };
                println!("  {:<8} {:>9}  {result}", step.name, seconds(*took));
            }
            None => println!("  {:<8} {:>9}  not run", step.name, "-"),
        }
    }
    let total = done.iter().map(|(_, t)| *t).sum();
    println!("  {:<8} {:>9}", "total", seconds(total));
}

fn seconds(t: Duration) -> String {
    format!("{:.1} s", t.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_can_be_chosen_and_a_wrong_name_lists_the_right_ones() {
        assert_eq!(chosen(Some("tidy")).unwrap().len(), 1);
        let all: Vec<_> = chosen(None).unwrap().iter().map(|s| s.name).collect();
        assert_eq!(all, ["fmt", "tidy", "supply", "clippy", "test", "kernels", "doc"]);
        let message = chosen(Some("lint")).err().expect("lint is no step").to_string();
        assert!(message.contains("no step `lint`") && message.contains("fmt, tidy, supply"), "{message}");
    }
}
