//! The `halfbyte` binary.

use clap::Parser;
use halfbyte_trainer::{Cli, dashed, exit_code, message, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Cli::parse_from(std::env::args_os().map(dashed))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            halfbyte_trainer::console::error(&message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}
