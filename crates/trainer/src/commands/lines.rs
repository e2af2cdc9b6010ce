//! Where a chat's lines come from: a terminal, with editing and a history, else standard input as it is.

use crate::console;
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    io::{self, BufRead, IsTerminal, StdinLock},
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

pub(super) enum Lines {
    Terminal(Box<DefaultEditor>),
    Input(StdinLock<'static>),
}

impl Lines {
    /// Those of standard input.
    pub(super) fn open() -> Lines {
        let talks = io::stdin().is_terminal() && io::stdout().is_terminal();
        match talks.then(DefaultEditor::new) {
            Some(Ok(editor)) => {
                watch_interrupt();
                Lines::Terminal(Box::new(editor))
            }
            _ => Lines::Input(io::stdin().lock()),
        }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// An input that cannot be read. A line that is no text is told of and left out.
    pub(super) fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            match self {
                Lines::Terminal(editor) => match editor.readline(">>> ") {
                    Ok(line) => {
                        // A line that does not get into the history was said all the same.
                        let _ = editor.add_history_entry(line.as_str());
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(ReadlineError::Interrupted) => console::say("/quit or Ctrl-D leaves"),
                    Err(ReadlineError::Io(error)) => return Err(error),
                    Err(error) => console::warn(&error.to_string()),
                },
                Lines::Input(from) => {
                    let mut bytes = Vec::new();
                    if from.read_until(b'\n', &mut bytes)? == 0 {
                        return Ok(None);
                    }
                    match String::from_utf8(bytes) {
                        Ok(line) => return Ok(Some(line)),
                        Err(_) => console::warn("this line is no UTF-8 text and was left out"),
                    }
                }
            }
        }
    }
}

/// Whether the model is answering.
static ANSWERS: AtomicBool = AtomicBool::new(false);
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// An answer under way: as long as this lives, Ctrl-C on a terminal ends it instead of the program.
pub(super) struct Answer;

impl Answer {
    pub(super) fn begin() -> Answer {
        ENOUGH.store(false, Ordering::SeqCst);
        ANSWERS.store(true, Ordering::SeqCst);
        Answer
    }

    /// Whether the user has had enough of it.
    pub(super) fn is_enough(&self) -> bool {
        ENOUGH.load(Ordering::SeqCst)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        ANSWERS.store(false, Ordering::SeqCst);
    }
}

fn watch_interrupt() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Where signals cannot be watched Ctrl-C ends the program, as it does without a terminal.
        let _ = ctrlc::set_handler(|| {
            if !ANSWERS.load(Ordering::SeqCst) || ENOUGH.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
    });
}
