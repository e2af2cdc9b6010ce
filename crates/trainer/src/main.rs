//! The `halfbyte` binary.

mod alloc;

use clap::Parser;
use halfbyte_trainer::{Cli, exit_code, is_unread, message, normalised, run, tell_of_interrupts};
use std::process::ExitCode;

#[global_allocator]
static MEMORY: alloc::Ending = alloc::Ending;

fn main() -> ExitCode {
    let done = normalised(std::env::args_os()).and_then(|args| {
        let cli = Cli::parse_from(args);
        tell_of_interrupts(&cli);
        run(cli)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !is_unread(&error) {
                halfbyte_trainer::console::error(&message(&error));
            }
            ExitCode::from(exit_code(&error))
        }
    }
}
