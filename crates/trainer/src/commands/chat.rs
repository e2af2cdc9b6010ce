use super::{
    dialogue::Dialogue,
    lines::Lines,
    session::{Opened, Session},
};
use crate::{
    cli::ChatArgs,
    console,
    failure::{message, user_error},
    load::NO_ADAPTER,
    rows::{LayoutArg, TemplateFlags},
    templates::{Voice, own_template, template},
};
use halfbyte_files::append_file;
use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

const HELP: &str = "/adapter NAME  use an adapter and its chat template (`none`: the base alone)\n/adapters      list them\n/unload NAME   give an adapter's memory back\n/undo          forget the last question and its answer\n/reset         forget what was said\n/save FILE     append the conversation to a file of rows, to be trained on\n/quit          leave (on a terminal, Ctrl-D; Ctrl-C ends an answer, the arrows bring lines back)";

/// Tokens of what is said first, for which there must be memory before the model is loaded; later there is a look at what is free.
const FIRST: usize = 512;

/// What was said so far.
enum Said {
    /// A text that goes on and on, and its length before each of the lines.
    Text(String, Vec<usize>),
    /// Messages.
    Turns(Box<Dialogue>),
}

/// `halfbyte chat`: every line is answered, or appended to the text so far and continued.
pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let mut opened = Opened::open(&args.base, &args.adapter, &args.sampling)?;
    let mut said = begin(args, &mut opened)?;
    let voices = opened.voices().to_vec();
    let mut session = opened.load(FIRST)?;
    let first = session.names().next().unwrap_or(NO_ADAPTER).to_owned();
    session.activate(&first)?;
    let what = match &said {
        Said::Text(..) => "Type a text and the model continues it",
        Said::Turns(_) => "Type a message and the model answers",
    };
    console::say(&format!("adapter: {first}. {what}; /help lists the commands."));
    let mut out = io::stdout().lock();
    let mut lines = Lines::open();
    while let Some(line) = lines.next()? {
        match line.trim().split_once(' ').map_or((line.trim(), ""), |it| (it.0, it.1.trim())) {
            ("", _) => {}
            ("/quit" | "/exit", _) => break,
            ("/help", _) => console::say(HELP),
            ("/reset", _) => said.reset(),
            ("/undo", _) => {
                if !said.undo() {
                    console::warn("nothing was said yet");
                }
            }
            ("/save", file) => match said.save(file) {
                Ok(()) => console::say(&format!("appended to {file}")),
                Err(error) => console::warn(&message(&error)),
            },
            ("/adapters", _) => session.names().for_each(console::say),
            ("/adapter", name) => tell(session.activate(name), &mut session, (&mut said, args, &voices)),
            ("/unload", name) => tell(session.unload(name), &mut session, (&mut said, args, &voices)),
            (command, _) if command.starts_with('/') => {
                console::warn(&format!("{command} is unknown; /help lists the commands"))
            }
            _ => {
                if let Err(error) = said.go_on(&mut session, line.trim_end(), &mut out) {
                    // Without a place to write to there is nobody to talk with.
                    if error.is::<io::Error>() {
                        return Err(error);
                    }
                    console::warn(&format!("{}; the line was left out, /reset forgets the others", message(&error)));
                }
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// Messages if a template was asked for or found, else text.
fn begin(args: &ChatArgs, opened: &mut Opened) -> anyhow::Result<Said> {
    let (voice, tokenizer) = (&opened.voices()[..1], opened.tokenizer());
    let found = match args.layout {
        Some(LayoutArg::Text | LayoutArg::Completion) => None,
        Some(_) => Some(template(&flags(args), voice, tokenizer)?),
        None => own_template(&flags(args), voice, tokenizer)?,
    };
    let Some(template) = found else {
        if args.system.is_some() {
            return Err(user_error(
                "--system is a message, but what is typed here is continued as text; add --layout chat",
            ));
        }
        return Ok(Said::Text(String::new(), Vec::new()));
    };
    let ends = template.end_ids(tokenizer)?;
    opened.stop_at(&ends);
    Ok(Said::Turns(Box::new(Dialogue::new(template, args.system.as_deref()))))
}

/// The flags of the template, with what the layout says of it.
fn flags(args: &ChatArgs) -> TemplateFlags {
    let mut flags = args.template.clone();
    if args.layout == Some(LayoutArg::Instruction) {
        flags.chat_template.get_or_insert_with(|| "instruction".into());
    }
    flags
}

impl Said {
    /// Goes on as the adapter in use would have a conversation written.
    fn follow(&mut self, session: &mut Session, args: &ChatArgs, voices: &[Voice]) -> anyhow::Result<()> {
        let voice = voices.iter().filter(|it| it.name == session.active()).take(1).cloned().collect::<Vec<_>>();
        match self {
            Said::Text(..) => {
                if args.layout.is_none() && own_template(&flags(args), &voice, session.tokenizer())?.is_some() {
                    console::warn(&format!(
                        "{} has a chat template, and what is typed goes on being continued as text; --layout chat begins a conversation",
                        session.active()
                    ));
                }
            }
            Said::Turns(dialogue) => {
                let found = template(&flags(args), &voice, session.tokenizer())?;
                if found != *dialogue.template() {
                    console::say(&format!("conversations are written by {} from now on", found.origin()));
                    let ends = found.end_ids(session.tokenizer())?;
                    session.stop_only_at(&ends);
                    dialogue.write_by(found);
                }
            }
        }
        Ok(())
    }

    /// Takes a line and writes what the model makes of it; if that fails, what was said is as it was.
    fn go_on(&mut self, session: &mut Session, line: &str, out: &mut dyn Write) -> anyhow::Result<()> {
        match self {
            Said::Text(text, lengths) => {
                let between = if text.is_empty() { "" } else { "\n" };
                let mut longer = format!("{text}{between}{line}");
                let (_, said) = session.stream(&longer, out)?;
                longer += &said;
                lengths.push(text.len());
                *text = longer;
            }
            Said::Turns(dialogue) => {
                let ids = dialogue.ask(line, session.tokenizer())?;
                match session.stream_ids(ids, &mut Dimmed { out, dims: io::stdout().is_terminal() }) {
                    Ok((generated, said)) => dialogue.answered(&generated.ids, said.trim(), session.tokenizer())?,
                    Err(error) => {
                        dialogue.undo();
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn undo(&mut self) -> bool {
        match self {
            Said::Text(text, lengths) => lengths.pop().map(|it| text.truncate(it)).is_some(),
            Said::Turns(dialogue) => dialogue.undo(),
        }
    }

    fn reset(&mut self) {
        match self {
            Said::Text(text, lengths) => {
                text.clear();
                lengths.clear();
            }
            Said::Turns(dialogue) => dialogue.reset(),
        }
    }

    fn save(&self, file: &str) -> anyhow::Result<()> {
        if file.is_empty() {
            return Err(user_error("/save FILE: name a file"));
        }
        let row = match self {
            Said::Text(text, _) => serde_json::json!({ "text": text }).to_string(),
            Said::Turns(dialogue) => dialogue.row(),
        };
        // A pipe would be waited for until somebody reads from it.
        let mut to = append_file(Path::new(file)).map_err(|it| user_error(it.to_string()))?;
        writeln!(to, "{row}").map_err(|it| user_error(format!("{file}: {it}")))
    }
}

/// Shows on a terminal what a model thinks before it answers in a dim colour.
struct Dimmed<'a> {
    out: &'a mut dyn Write,
    dims: bool,
}

impl Write for Dimmed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match str::from_utf8(bytes) {
            Ok(text) if self.dims => {
                let text = text.replace("<think>", "\x1b[2m<think>").replace("</think>", "</think>\x1b[0m");
                self.out.write_all(text.as_bytes())?;
            }
            _ => self.out.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Says which adapter is in use now, and has its template write what follows, or says what was wrong.
fn tell(done: anyhow::Result<()>, session: &mut Session, (said, args, voices): (&mut Said, &ChatArgs, &[Voice])) {
    if let Err(error) = done {
        return console::warn(&error.to_string());
    }
    console::say(&format!("adapter: {}", session.active()));
    if let Err(error) = said.follow(session, args, voices) {
        console::warn(&format!("{}; conversations are written as before", message(&error)));
    }
}
