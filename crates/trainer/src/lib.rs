//! What the `halfbyte` binary does: configuration, fine-tuning, generation, evaluation, merging.
//!
//! Everything below is wired together here and nowhere else: formats come from `frozen`, adapters from `lora`, models
//! from `models`, rows from `data`, the optimizer from `paged-optim`.

mod base_record;
pub mod cli;
mod commands;
pub mod console;
mod evaluate;
mod failure;
pub mod finetune;
mod fingerprint;
pub mod import;
mod interrupt;
mod labels;
mod load;
mod memory;
mod merge_check;
mod places;
mod plan;
mod quantized_checkpoint;
mod rows;
mod run_rows;
mod save_model;
mod sources;
mod spellings;
mod streamed_matrix;
mod templates;
mod token_cache;
mod vocabulary;

use std::{error::Error, fmt, time::Instant};

use cli::Command;

pub use cli::Cli;
pub use failure::{Interrupted, UserError, exit_code, is_unread, message};
pub use interrupt::tell_of_interrupts;
pub use spellings::normalised;

/// Runs a command. What it prints for people goes to standard error, results to standard output.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let begun = Instant::now();
    console::init(cli.verbose);
    let mut command = cli.command;
    let mut threads = cli.threads;
    if let Command::Finetune(args) = &mut command {
        **args = std::mem::take(&mut **args).with_file()?;
        args.threads = threads.or(args.threads);
        threads = args.threads;
    }
    set_threads(threads)?;
    match command {
        Command::Finetune(args) => finetune::run(*args, begun),
        Command::Generate(args) => commands::generate(&args),
        Command::Chat(args) => commands::chat(&args),
        Command::Data(args) => commands::data(&args),
        Command::Eval(args) => commands::eval(&args),
        Command::Inspect(args) => commands::inspect(&args),
        Command::Merge(args) => commands::merge(&args),
        Command::Quantize(args) => commands::quantize(&args),
        Command::ImportConfig(args) => import::import_config(&args),
        Command::Pull(args) => commands::pull(&args),
        Command::Models(args) => commands::models(&args),
        Command::Devices => commands::devices(),
        Command::Doctor => commands::doctor(),
    }
}

/// More than any machine has cores; so many threads would only wait for each other.
const MAX_THREADS: usize = 1024;

/// Bytes of addresses that a thread takes: the standard library's stack, and what lies around it.
const STACK: usize = (2 << 20) + (64 << 10);

fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    if let Some(asked) = threads.filter(|it| !(1..=MAX_THREADS).contains(it)) {
        return Err(UserError(format!("--threads must be between 1 and {MAX_THREADS}, got {asked}")).into());
    }
    let refused = |why: &dyn fmt::Display| {
        UserError(format!("the threads cannot be started: {why}; --threads with a smaller number may do"))
    };
    // A thread that finds no room for what it needs beside its stack ends in the standard library, with no error that could be told.
    if let (Some(asked), Some(left)) = (threads, memory::address_space_left())
        && asked.saturating_mul(STACK) > left
    {
        let needed = asked.saturating_mul(STACK) >> 20;
        let why = format!(
            "the stacks of {asked} take {needed} MiB, and the limit on this process's addresses leaves {}",
            left >> 20
        );
        return Err(refused(&why).into());
    }
    // This thread is one of the pool: it works on what it hands out instead of falling asleep until others have done it.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).use_current_thread();
    match pool.build_global() {
        Err(error) if error.source().is_some() => Err(refused(&error).into()),
        // There may be a pool already where several commands run in one process.
        _ => Ok(()),
    }
}
