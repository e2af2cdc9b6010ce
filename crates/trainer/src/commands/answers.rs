//! Where the continuations of several prompts go: in their order, as texts, or as objects that a later command can go on from.

use super::settings::difference;
use crate::{console, failure::user_error};
use anyhow::Context as _;
use halfbyte_data::{Prompt, Tokenizer};
use halfbyte_files::{append_file, read_text};
use halfbyte_models::{Generated, StopReason};
use serde_json::{Map, Value, json};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A place for continuations.
pub(super) enum Answers {
    /// Texts on standard output.
    Texts,
    /// Objects on standard output.
    Objects,
    /// Objects in a file, which is written line by line, so that what is there can be gone on from.
    File(Lines),
}

/// A file of objects before any is written into it.
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    /// Bytes of what is gone on from.
    whole: u64,
}

/// What the continuations of a list of prompts are, adapter by adapter: each prompt with each adapter in turn.
pub(super) struct Wanted<'a> {
    pub(super) prompts: &'a [Prompt],
    /// Names of adapters, if it matters which.
    pub(super) adapters: Vec<Option<&'a str>>,
    /// What they hang on beside.
    pub(super) settings: Map<String, Value>,
}

impl Wanted<'_> {
    pub(super) fn len(&self) -> usize {
        self.prompts.len() * self.adapters.len()
    }

    /// What a line of a file has to say of itself.
    fn keys(&self, at: usize) -> Value {
        let row = at % self.prompts.len();
        let mut object = json!({ "row": row });
        if let Some(name) = self.adapters[at / self.prompts.len()] {
            object["adapter"] = name.into();
        }
        object["prompt"] = self.prompts[row].text.as_str().into();
        object
    }
}

impl Answers {
    /// A file, and how many of the continuations it has already.
    ///
    /// # Errors
    /// A file that is there and is neither to be replaced nor gone on from, or that holds something else.
    pub(super) fn file(
        path: &Path,
        wanted: &Wanted<'_>,
        resume: bool,
        overwrite: bool,
    ) -> anyhow::Result<(Answers, usize)> {
        let name = path.display();
        let there = path.exists().then(|| read_text(path)).transpose()?.unwrap_or_default();
        if !there.is_empty() && !resume && !overwrite {
            return Err(user_error(format!(
                "--output {name} is there already; --resume goes on where it ends, --overwrite replaces it"
            )));
        }
        let (mut done, mut whole) = (0, 0);
        if resume {
            for line in there.split_inclusive('\n') {
                // A command that was killed may have left a part of one.
                if !line.ends_with('\n') {
                    break;
                }
                compare(line, wanted, done).map_err(|why| {
                    user_error(format!(
                        "--output {name}: line {} {why}; --resume goes on with the same, --overwrite begins anew",
                        done + 1
                    ))
                })?;
                (done, whole) = (done + 1, whole + line.len());
            }
        }
        let lines = Lines { path: path.to_owned(), file: append_file(path)?, whole: whole as u64 };
        Ok((Answers::File(lines), done))
    }

    /// Takes away what is not to stay in a file: when all that can be refused was not.
    pub(super) fn begin(&self) -> anyhow::Result<()> {
        let Answers::File(it) = self else { return Ok(()) };
        it.file.set_len(it.whole).with_context(|| it.path.display().to_string())
    }

    /// Writes the continuation of the `at`th of what is wanted.
    pub(super) fn write(
        &mut self,
        at: usize,
        wanted: &Wanted<'_>,
        generated: &Generated,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<()> {
        let prompt = &wanted.prompts[at % wanted.prompts.len()];
        if matches!(self, Answers::Texts) {
            let mut stream = tokenizer.stream(true);
            let mut text = String::new();
            for id in &generated.ids {
                text += &stream.push(*id)?;
            }
            text += &stream.finish()?;
            return Ok(writeln!(io::stdout().lock(), "{text}")?);
        }
        let mut object = wanted.keys(at);
        object["completion"] = tokenizer.continuation(&prompt.ids, &generated.ids)?.into();
        object["prompt_tokens"] = prompt.ids.len().into();
        object["tokens"] = generated.ids.len().into();
        object["finish_reason"] = finish_reason(generated.stop).into();
        object["settings"] = wanted.settings.clone().into();
        let line = format!("{object}\n");
        match self {
            Answers::File(it) => it.file.write_all(line.as_bytes())?,
            _ => io::stdout().lock().write_all(line.as_bytes())?,
        }
        Ok(())
    }

    /// Makes what was written last.
    pub(super) fn finish(self) -> io::Result<()> {
        if let Answers::File(it) = self { it.file.sync_all() } else { Ok(()) }
    }

    /// Whether people read what is written, and would like to know what it is of.
    pub(super) fn announce(&self, text: &str) {
        if matches!(self, Answers::Texts) {
            console::say(text);
        }
    }
}

/// Why a text ended, in the words of OpenAI's and vLLM's interfaces.
fn finish_reason(stop: StopReason) -> &'static str {
    match stop {
        StopReason::Eos => "stop",
        StopReason::MaxNewTokens | StopReason::MaxPosition => "length",
        StopReason::Caller => "abort",
    }
}

/// Fails if a line is not the `at`th of what is wanted, or was made in another way, with what it is instead.
fn compare(line: &str, wanted: &Wanted<'_>, at: usize) -> Result<(), String> {
    let other = || "is not what these prompts and adapters have there".to_owned();
    let Ok(Value::Object(found)) = serde_json::from_str(line) else { return Err(other()) };
    if at >= wanted.len() || !found.contains_key("completion") {
        return Err(other());
    }
    let keys = wanted.keys(at);
    if ["row", "adapter", "prompt"].iter().any(|it| found.get(*it) != keys.get(it)) {
        return Err(other());
    }
    let Some(Value::Object(settings)) = found.get("settings") else { return Err("does not say its settings".into()) };
    match difference(settings, &wanted.settings) {
        None => Ok(()),
        Some((key, there, now)) => Err(format!("was made with {key} {there}, and now it is {now}")),
    }
}
