//! What `generate` is to continue: the texts of its flags, or the rows of files.

use super::{dialogue::Dialogue, session::Opened};
use crate::{
    cli::GenerateArgs,
    console,
    failure::user_error,
    places,
    rows::LayoutArg,
    templates::{Voice, template},
};
use halfbyte_data::{
    ChatTemplate, ColumnNames, Columns, DataFiles, Part, Prompt, PromptConfig, instruction_prompt, parse_rows,
};
use std::sync::Arc;

/// The prompts in their layout for adapters by name, each found to be one that the model can go on from.
pub(super) fn prompts(args: &GenerateArgs, adapters: &[String], opened: &mut Opened) -> anyhow::Result<Vec<Prompt>> {
    let layout = if args.chat { Some(LayoutArg::Chat) } else { args.layout };
    match args.prompts.is_empty() {
        true => of_flags((args, adapters), layout.unwrap_or(LayoutArg::Text), opened),
        false => of_files((args, adapters), layout, opened),
    }
}

fn of_flags(
    (args, adapters): (&GenerateArgs, &[String]),
    layout: LayoutArg,
    opened: &mut Opened,
) -> anyhow::Result<Vec<Prompt>> {
    let mut dialogue = match layout {
        LayoutArg::Chat => Some(Dialogue::new(chat_template(args, adapters, opened)?, args.system.as_deref())),
        _ => {
            refuse_flags_of_chats(args)?;
            None
        }
    };
    let mut all = Vec::with_capacity(args.prompt.len());
    for prompt in &args.prompt {
        let tokenizer = opened.tokenizer();
        let (text, ids) = if let Some(dialogue) = &mut dialogue {
            dialogue.reset();
            let ids = dialogue.ask(prompt, tokenizer)?;
            (dialogue.text().to_owned(), ids)
        } else {
            let text = if layout == LayoutArg::Instruction { instruction_prompt(prompt, None) } else { prompt.clone() };
            let ids = tokenizer.encode_prompt(&text)?;
            (text, ids)
        };
        let which = if args.prompt.len() == 1 { String::new() } else { format!("--prompt {}: ", all.len() + 1) };
        if ids.is_empty() {
            return Err(user_error(format!("{which}the prompt has no token; give the model something to continue")));
        }
        if ids.len() >= opened.positions() {
            let (tokens, positions) = (ids.len(), opened.positions());
            return Err(user_error(format!(
                "{which}the prompt has {tokens} tokens, the model has positions for {positions}"
            )));
        }
        all.push(Prompt { text, ids });
    }
    Ok(all)
}

fn of_files(
    (args, adapters): (&GenerateArgs, &[String]),
    layout: Option<LayoutArg>,
    opened: &mut Opened,
) -> anyhow::Result<Vec<Prompt>> {
    let named = args.prompts.iter().map(|it| Ok(places::data(it, Part::HeldOut)?.files));
    let files = DataFiles::find(&named.collect::<anyhow::Result<Vec<_>>>()?.concat(), Part::HeldOut)?;
    if let Some(output) = args.output.as_ref().and_then(|it| it.canonicalize().ok())
        && files.paths().iter().any(|it| it.canonicalize().is_ok_and(|it| it == output))
    {
        return Err(user_error(format!("--output {} holds the prompts; name another file", output.display())));
    }
    let columns = files.columns()?;
    let mut names = args.columns.as_deref().map_or_else(|| Ok(ColumnNames::default()), ColumnNames::parse)?;
    if let Some(text) = &args.text_column {
        names = names.with_text(text);
    }
    let chosen = Columns::choose_prompts(&columns, &names, layout.map(Into::into))
        .map_err(|error| user_error(format!("{}: {error}", files.described())))?;
    chosen.notes.iter().for_each(|it| console::warn(&format!("{}: {it}", files.described())));
    let conversations = chosen.columns.are_conversations(&columns);
    if !conversations {
        refuse_flags_of_chats(args)?;
    }
    let config = PromptConfig {
        columns: chosen.columns,
        rows: args.rows.as_deref().map(parse_rows).transpose()?,
        template: if conversations { Some(Arc::new(chat_template(args, adapters, opened)?)) } else { None },
        system: args.system.clone(),
        limit: opened.positions(),
    };
    let prompts = Prompt::read(&files, opened.tokenizer(), &config)?;
    console::say(&format!("{}: {} prompts; {}", files.described(), prompts.len(), config.columns.of_prompts()));
    Ok(prompts)
}

/// Refuses what only the writing of a conversation heeds, where there is none.
fn refuse_flags_of_chats(args: &GenerateArgs) -> anyhow::Result<()> {
    let given = [
        ("--system is a message of a chat", args.system.is_some()),
        ("--chat-template writes a chat", args.template.chat_template.is_some()),
        ("--chat-template-kwargs are for the template of a chat", args.template.chat_template_kwargs.is_some()),
    ];
    match given.iter().find(|it| it.1) {
        None => Ok(()),
        Some((what, _)) => Err(user_error(format!("{what}; add --chat"))),
    }
}

/// What writes conversations for these adapters, which end where it ends an answer, too.
fn chat_template(args: &GenerateArgs, adapters: &[String], opened: &mut Opened) -> anyhow::Result<ChatTemplate> {
    let voices: Vec<Voice> = opened.voices().iter().filter(|it| adapters.contains(&it.name)).cloned().collect();
    let template = template(&args.template, &voices, opened.tokenizer())?;
    opened.stop_at(&template.end_ids(opened.tokenizer())?);
    Ok(template)
}
