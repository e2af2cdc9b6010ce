//! Which chat template writes conversations: the one that the flags name, else that of the adapter in use, else its base's.

use crate::{
    console,
    failure::user_error,
    load::{BaseModel, NO_ADAPTER},
    rows::TemplateFlags,
};
use halfbyte_data::{CHATML, ChatTemplate, INSTRUCTION, Tokenizer};
use halfbyte_files::read_text;
use std::path::{Path, PathBuf};

/// An adapter on its base, or a base alone, and where its chat template may lie.
#[derive(Clone, Debug)]
pub(crate) struct Voice {
    pub(crate) name: String,
    /// The likeliest first.
    folders: Vec<PathBuf>,
}

impl Voice {
    /// A base without an adapter.
    pub(crate) fn of_base(base: &BaseModel) -> Voice {
        Voice { name: NO_ADAPTER.to_owned(), folders: vec![base.folder.dir().to_owned()] }
    }

    /// One that is trained, with the tokenizer that it is trained with.
    pub(crate) fn of_training(base: &BaseModel) -> Voice {
        let folders = vec![base.tokenizer_dir.clone(), base.folder.dir().to_owned()];
        Voice { name: NO_ADAPTER.to_owned(), folders }
    }

    /// Adapters by name, in turn, or the base where there is none.
    pub(crate) fn all(named: &[(String, PathBuf)], base: &BaseModel) -> Vec<Voice> {
        let one = |(name, dir): &(String, PathBuf)| Voice {
            name: name.clone(),
            folders: vec![dir.clone(), base.folder.dir().to_owned()],
        };
        if named.is_empty() { vec![Voice::of_base(base)] } else { named.iter().map(one).collect() }
    }

    /// The folder of the adapter, or of the base where there is none.
    pub(crate) fn dir(&self) -> &Path {
        &self.folders[0]
    }

    /// Whether its conversations are written by this template if no flag names one.
    pub(crate) fn writes_by(&self, template: &ChatTemplate, tokenizer: &Tokenizer) -> anyhow::Result<bool> {
        let Some(own) = self.template(tokenizer)? else { return Ok(template.source() == INSTRUCTION) };
        Ok(own.same_text(template))
    }

    /// Its template, if it has one.
    fn template(&self, tokenizer: &Tokenizer) -> anyhow::Result<Option<ChatTemplate>> {
        for folder in &self.folders {
            if let Some(found) = ChatTemplate::load(folder, tokenizer)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// The template that the flags name, else that of those who are asked in turn, if they have one.
///
/// # Errors
/// Templates that differ, so that no text is the same for all.
pub(crate) fn own_template(
    flags: &TemplateFlags,
    voices: &[Voice],
    tokenizer: &Tokenizer,
) -> anyhow::Result<Option<ChatTemplate>> {
    let built_in = |source: &str, name: &str| ChatTemplate::new(source.to_owned(), name, tokenizer);
    let found = match flags.chat_template.as_deref() {
        Some("chatml") => Some(built_in(CHATML, "chatml")?),
        Some("instruction") => Some(built_in(INSTRUCTION, "instruction")?),
        Some(path) => Some(of_file(Path::new(path), tokenizer)?),
        None => common(voices, tokenizer)?,
    };
    found.map(|it| prepared(flags, it)).transpose()
}

/// [`own_template`], or where there is none that of instructions, which suits any model.
pub(crate) fn template(flags: &TemplateFlags, voices: &[Voice], tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
    if let Some(found) = own_template(flags, voices, tokenizer)? {
        return Ok(found);
    }
    console::warn(
        "the model has no chat template, so conversations are written as instructions (### Instruction: ... ### Response: ...); --chat-template takes another",
    );
    prepared(flags, ChatTemplate::new(INSTRUCTION.to_owned(), "instruction", tokenizer)?)
}

/// The one template of all.
fn common(voices: &[Voice], tokenizer: &Tokenizer) -> anyhow::Result<Option<ChatTemplate>> {
    let mut all = Vec::with_capacity(voices.len());
    for voice in voices {
        let found = voice.template(tokenizer)?;
        let first = all.first().map(|(voice, found): &(&Voice, Option<ChatTemplate>)| (*voice, found.as_ref()));
        if let Some((first, its)) = first.filter(|it| !alike(it.1, found.as_ref())) {
            let origin = |it: Option<&ChatTemplate>| it.map_or("instruction", ChatTemplate::origin).to_owned();
            return Err(user_error(format!(
                "conversations are written by {} for `{}` and by {} for `{}`, which is another chat template: take one of them at a time (generate has --use-adapter, eval takes one --adapter), or one template for all with --chat-template",
                origin(its),
                first.name,
                origin(found.as_ref()),
                voice.name
            )));
        }
        all.push((voice, found));
    }
    Ok(all.into_iter().find_map(|it| it.1))
}

/// Whether both write the same. Where there is none, that of instructions does.
fn alike(one: Option<&ChatTemplate>, other: Option<&ChatTemplate>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        (Some(it), None) | (None, Some(it)) => it.source() == INSTRUCTION,
        (None, None) => true,
    }
}

fn prepared(flags: &TemplateFlags, found: ChatTemplate) -> anyhow::Result<ChatTemplate> {
    if found.takes_the_date() {
        console::warn(&format!("{}: the chat template writes today's date into every text", found.origin()));
    }
    let Some(kwargs) = &flags.chat_template_kwargs else { return Ok(found) };
    let variables = serde_json::from_str(kwargs)
        .map_err(|error| user_error(format!("--chat-template-kwargs {kwargs}: not a JSON object: {error}")))?;
    Ok(found.with_variables(variables))
}

fn of_file(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
    let refused =
        |error| user_error(format!("--chat-template {error}; it takes a file, or one of chatml and instruction"));
    let source = read_text(path).map_err(refused)?;
    Ok(ChatTemplate::new(source, &path.display().to_string(), tokenizer)?)
}
