//! Where the continuations of several prompts go: in their order, as texts, or as objects that a later command can go on from.

use super::settings::difference;
use crate::{console, failure::user_error, fingerprint::Fingerprint};
use anyhow::Context as _;
use halfbyte_data::{Prompt, Tokenizer};
use halfbyte_files::{append_file, read_text};
use halfbyte_models::{Generated, StopReason};
use serde_json::{Map, Value, json};
use std::{
    fs::{File, TryLockError},
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
    /// Locked, so that there is one at a time who writes.
    file: File,
    /// Bytes of what is gone on from, until the first line is written: what is to go stays as long as there is nothing in its place.
    whole: Option<u64>,
}

impl Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(whole) = self.whole.take() {
            self.file.set_len(whole)?;
        }
        self.file.write_all(line)
    }
}

/// What the continuations of a list of prompts are, adapter by adapter: each prompt with each adapter in turn.
pub(super) struct Wanted<'a> {
    pub(super) prompts: &'a [Prompt],
    /// The number of the first one's row.
    pub(super) first: usize,
    /// Names of adapters, if it matters which.
    pub(super) adapters: Vec<Option<&'a str>>,
    /// By what each one's weights are known.
    pub(super) weights: Vec<Option<Fingerprint>>,
    /// What they hang on beside the prompt and the adapter.
    pub(super) settings: Map<String, Value>,
}

impl Wanted<'_> {
    pub(super) fn len(&self) -> usize {
        self.prompts.len() * self.adapters.len()
    }

    /// What a line of a file has to say of itself.
    fn keys(&self, at: usize) -> Value {
        let row = at % self.prompts.len();
        let mut object = json!({ "row": self.first + row });
        if let Some(name) = self.adapters[at / self.prompts.len()] {
            object["adapter"] = name.into();
        }
        object["prompt"] = self.prompts[row].text.as_str().into();
        object
    }

    /// What the `at`th of these hangs on beside its prompt.
    fn settings_of(&self, at: usize) -> Map<String, Value> {
        let mut all = self.settings.clone();
        if let Some(weights) = self.weights[at / self.prompts.len()] {
            all.insert("adapter_weights".into(), json!(weights));
        }
        all
    }

    /// Whether a line that nobody finished is the `at`th of these.
    fn may_begin(&self, at: usize, torn: &str) -> bool {
        if at >= self.len() {
            return false;
        }
        let keys = self.keys(at).to_string();
        let begins = keys[..keys.len() - 1].to_owned() + ",\"completion\":\"";
        torn.starts_with(&begins) || begins.starts_with(torn)
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
        let file = append_file(path)?;
        // A file system without locks keeps nobody out.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(user_error(format!(
                "--output {name} is being written by another command; wait for it, or name another file"
            )));
        }
        let there = read_text(path)?;
        if !there.is_empty() && !resume && !overwrite {
            return Err(user_error(format!(
                "--output {name} is there already; --resume goes on where it ends, --overwrite replaces it"
            )));
        }
        let (mut done, mut whole) = (0, 0);
        if resume {
            for line in there.split_inclusive('\n') {
                // A command that was killed may have left a part of one.
                if !line.ends_with('\n') && wanted.may_begin(done, line) {
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
        Ok((Answers::File(Lines { path: path.to_owned(), file, whole: Some(whole as u64) }), done))
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
        object["settings"] = wanted.settings_of(at).into();
        let line = format!("{object}\n");
        match self {
            Answers::File(it) => it.write(line.as_bytes()).with_context(|| it.path.display().to_string())?,
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
    match difference(settings, &wanted.settings_of(at)) {
        None => Ok(()),
        Some((key, there, now)) => Err(format!("was made with {key} {there}, and now it is {now}")),
    }
}
