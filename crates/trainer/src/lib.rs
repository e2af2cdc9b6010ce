//! What the `halfbyte` binary does: configuration, fine-tuning, generation, evaluation, merging.
//!
//! Everything below is wired together here and nowhere else: formats come from `frozen`, adapters from `lora`, models
//! from `models`, rows from `data`, the optimizer from `paged-optim`.

mod cli;
mod commands;
pub mod console;
mod evaluate;
mod failure;
mod finetune;
mod load;
mod memory;
mod plan;
mod quantized_checkpoint;
mod save_model;

use std::time::Instant;

pub use cli::{Cli, Command};
pub use failure::{Interrupted, UserError, exit_code};

/// Runs a command. What it prints for people goes to standard error, results to standard output.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let begun = Instant::now();
    console::init(cli.verbose);
    cli.set_threads()?;
    match cli.command {
        Command::Finetune(args) => finetune::run(args, begun),
        Command::Generate(args) => commands::generate(&args),
        Command::Chat(args) => commands::chat(&args),
        Command::Eval(args) => commands::eval(&args),
        Command::Inspect(args) => commands::inspect(&args),
        Command::Merge(args) => commands::merge(&args),
        Command::Quantize(args) => commands::quantize(&args),
        Command::Devices => commands::devices(),
    }
}
