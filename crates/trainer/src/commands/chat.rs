use super::session::{NO_ADAPTER, Session};
use crate::{cli::ChatArgs, console};
use std::io::{self, BufRead, Write};

const HELP: &str = "/adapter NAME  use an adapter (`none`: the base alone)\n/adapters      list them\n/reset         forget what was said\n/quit          leave";

/// `halfbyte chat`: every line is appended to the text so far and continued.
pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let mut session = Session::open(&args.base, &args.adapter, &args.sampling)?;
    let mut active = session.adapters.first().cloned().unwrap_or_else(|| NO_ADAPTER.to_owned());
    session.activate(&active)?;
    console::say(&format!("adapter: {active}. Type a text and the model continues it; /help lists the commands."));
    let (mut text, mut out) = (String::new(), io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.trim().split_once(' ').map_or((line.trim(), ""), |it| (it.0, it.1.trim())) {
            ("", _) => {}
            ("/quit" | "/exit", _) => break,
            ("/help", _) => console::say(HELP),
            ("/reset", _) => text.clear(),
            ("/adapters", _) => session.adapters.iter().for_each(|it| console::say(it)),
            ("/adapter", name) => match session.activate(name) {
                Ok(()) => {
                    active = name.to_owned();
                    console::say(&format!("adapter: {active}"));
                }
                Err(error) => console::warn(&error.to_string()),
            },
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
