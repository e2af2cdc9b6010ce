use super::session::Session;
use crate::{cli::ChatArgs, console, load::NO_ADAPTER};
use std::io::{self, BufRead, Write};

const HELP: &str = "/adapter NAME  use an adapter (`none`: the base alone)\n/adapters      list them\n/unload NAME   give an adapter's memory back\n/reset         forget what was said\n/quit          leave";

/// `halfbyte chat`: every line is appended to the text so far and continued.
pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let mut session = Session::open(&args.base, &args.adapter, &args.sampling)?;
    let first = session.names().next().unwrap_or(NO_ADAPTER).to_owned();
    session.activate(&first)?;
    console::say(&format!("adapter: {first}. Type a text and the model continues it; /help lists the commands."));
    let (mut text, mut out) = (String::new(), io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let line = line?;
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
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(line.trim_end());
                let generated = session.stream(&text, &mut out)?;
                text += &session.tokenizer.decode(&generated.ids, true)?;
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// Says which adapter is in use now, or what was wrong.
fn tell(done: anyhow::Result<()>, session: &Session) {
    match done {
        Ok(()) => console::say(&format!("adapter: {}", session.active())),
        Err(error) => console::warn(&error.to_string()),
    }
}
