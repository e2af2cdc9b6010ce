//! What is said when Ctrl-C, a scheduler or a closing terminal ends a command. A training saves first, and a chat goes on, by handlers of
//! their own; all others end at once: what they write is whole, or can be gone on from.

use crate::{
    cli::{Cli, Command},
    console,
};

/// Has the program end with a sentence and exit code 130. For a program that runs one command: there is one handler a process.
pub fn tell_of_interrupts(cli: &Cli) {
    let what = match &cli.command {
        Command::Finetune(_) | Command::Chat(_) => return,
        Command::Generate(args) if args.output.is_some() => {
            "interrupted; the same command with --resume (instead of --overwrite) goes on where --output ends"
        }
        Command::Pull(_) => "interrupted; the same command goes on from what came",
        Command::Merge(_) | Command::Quantize(_) => "interrupted; --output is as it was",
        _ => "interrupted",
    };
    // Where signals cannot be watched they end the program as they do others.
    let _ = ctrlc::set_handler(move || {
        console::error(what);
        std::process::exit(130);
    });
}
