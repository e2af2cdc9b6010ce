use super::session::Session;
use crate::{cli::ChatArgs, console, failure::message, load::NO_ADAPTER};
use std::io::{self, BufRead, Write};

const HELP: &str = "/adapter NAME  use an adapter (`none`: the base alone)\n/adapters      list them\n/unload NAME   give an adapter's memory back\n/reset         forget what was said\n/quit          leave";

/// `halfbyte chat`: every line is appended to the text so far and continued.
pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let mut session = Session::open(&args.base, &args.adapter, &args.sampling)?;
    let first = session.names().next().unwrap_or(NO_ADAPTER).to_owned();
    session.activate(&first)?;
    console::say(&format!("adapter: {first}. Type a text and the model continues it; /help lists the commands."));
    let (mut text, mut out) = (String::new(), io::stdout().lock());
    let (mut from, mut bytes) = (io::stdin().lock(), Vec::new());
    while from.read_until(b'\n', &mut bytes)? > 0 {
        let line = String::from_utf8(std::mem::take(&mut bytes));
        let Ok(line) = line else {
            console::warn("this line is no UTF-8 text and was left out");
            continue;
        };
        match line.trim().split_once(' ').map_or((line.trim(), ""), |it| (it.0, it.1.trim())) {
            ("", _) => {}
            ("/quit" | "/exit", _) => break,
            ("/help", _) => console::say(HELP),
            ("/reset", _) => text.clear(),
            ("/adapters", _) => session.names().for_each(console::say),
            ("/adapter", name) => tell(session.activate(name), &session),
            ("/unload", name) => tell(session.unload(name), &session),
            (command, _) if command.starts_with('/') => {
                console::warn(&format!("{command} is unknown; /help lists the commands"))
            }
            _ => {
                if let Err(error) = go_on(&session, &mut text, line.trim_end(), &mut out) {
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

/// Appends a line to the text and continues it; if that fails, the text is as it was.
fn go_on(session: &Session, text: &mut String, line: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let between = if text.is_empty() { "" } else { "\n" };
    let mut longer = format!("{text}{between}{line}");
    let (_, said) = session.stream(&longer, out)?;
    longer += &said;
    *text = longer;
    Ok(())
}

/// Says which adapter is in use now, or what was wrong.
fn tell(done: anyhow::Result<()>, session: &Session) {
    match done {
        Ok(()) => console::say(&format!("adapter: {}", session.active())),
        Err(error) => console::warn(&error.to_string()),
    }
}
