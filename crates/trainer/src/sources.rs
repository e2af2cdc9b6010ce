//! The rows that a command reads: which files, which columns of them, and of several sources how much of each.

use crate::{
    cli::{ReadArgs, Switch},
    console::{self, say, thousands},
    failure::user_error,
    load::BaseModel,
    memory, places,
    rows::{LayoutArg, RowFlags},
    templates::{Voice, template},
    token_cache::Entry,
};
use halfbyte_data::{
    ChatTemplate, Chosen, Column, ColumnNames, Columns, DataConfig, DataFiles, Dataset, Excess, HoldOut, LossOn, Part,
    Report, Share, Tokenised, Tokenizer, parse_rows,
};
use std::{path::PathBuf, sync::Arc};

/// Everything that a command reads.
#[derive(Debug)]
pub(crate) struct Rows {
    /// One, or those of a mixture.
    pub(crate) sources: Vec<Source>,
    /// None if tokens are to be made anew.
    cache: Option<Cached>,
}

/// What tokens depend on beside their source.
#[derive(Debug)]
struct Cached {
    /// The folder of the tokenizer.
    model: PathBuf,
    /// What the template is told.
    variables: Option<String>,
}

/// Files whose rows are alike.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) files: DataFiles,
    pub(crate) config: DataConfig,
    /// Its part of a mixture, relative to those of the others.
    pub(crate) weight: Option<f64>,
}

impl Rows {
    /// Finds files and columns; `range` is that of the rows, as a user writes it. Conversations are written by the template of `voices`.
    pub(crate) fn find(
        named: &[PathBuf],
        part: Part,
        (flags, max_length, range): (&RowFlags, usize, Option<&str>),
        (base, voices): (&BaseModel, &[Voice]),
    ) -> anyhow::Result<Rows> {
        let mut finder = Finder { flags, max_length, range, base, voices, template: None };
        let named = named.iter().map(|it| places::weighted(it)).collect::<anyhow::Result<Vec<_>>>()?;
        check_weights(&named, part, range)?;
        let mut sources = Vec::new();
        if named.iter().any(|it| it.1.is_some()) {
            for (name, weight) in &named {
                sources.push(Source { weight: *weight, ..finder.source(&[name], part)? });
            }
        } else {
            let all: Vec<&PathBuf> = named.iter().map(|it| &it.0).collect();
            sources.push(finder.source(&all, part)?);
        }
        let cached =
            || Cached { model: base.tokenizer_dir.clone(), variables: flags.template.chat_template_kwargs.clone() };
        Ok(Rows { sources, cache: (!flags.no_token_cache).then(cached) })
    }

    /// As [`find`](Self::find), for commands that only read.
    pub(crate) fn named(args: &ReadArgs, part: Part, base: (&BaseModel, &[Voice])) -> anyhow::Result<Rows> {
        Rows::find(&args.data, part, (&args.row, args.max_length, args.rows.as_deref()), base)
    }

    /// Reads and tokenises them.
    pub(crate) fn load(&self, tokenizer: &Tokenizer) -> anyhow::Result<Loaded> {
        self.load_split(tokenizer, None)
    }

    /// As [`load`](Self::load), but for examples that are held out.
    pub(crate) fn load_split(&self, tokenizer: &Tokenizer, hold_out: Option<HoldOut>) -> anyhow::Result<Loaded> {
        // Other programs want memory, too.
        let limit = memory::available().map_or(usize::MAX, |it| it / 10 * 9);
        let read = |it: &Source| self.tokens(it, tokenizer, limit);
        let mut sources = self.sources.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
        let held_out = hold_out.map(|it| it.take(&mut sources)).transpose()?;
        let mut report = Report::default();
        let mut lines = Vec::with_capacity(sources.len());
        let mut parts = Vec::with_capacity(sources.len());
        for (source, made) in self.sources.iter().zip(sources) {
            report.add(&made.report);
            lines.push(format!("{}: {}; {}", source.files.described(), made.report, source.config.columns));
            parts.push((made.dataset, source.weight.unwrap_or(1.0)));
        }
        // What is no mixture has one part.
        let dataset = match <[_; 1]>::try_from(parts) {
            Ok([(dataset, _)]) => dataset,
            Err(parts) => Dataset::mixed(parts)?,
        };
        Ok(Loaded { dataset, held_out, report, lines })
    }

    /// As an earlier run made them, or made now and kept for a later one.
    fn tokens(&self, source: &Source, tokenizer: &Tokenizer, limit: usize) -> anyhow::Result<Tokenised> {
        let cache = self.cache.as_ref().and_then(|it| Entry::of(source, &it.model, it.variables.as_deref()));
        if let Some(found) = cache.as_ref().and_then(|it| it.read(limit)) {
            say(&format!("{}: tokens as an earlier command made them", source.files.described()));
            return Ok(found);
        }
        let made = Tokenised::read_within(&source.files, tokenizer, &source.config, limit)?;
        cache.iter().for_each(|it| it.write(&made));
        Ok(made)
    }

    /// What writes the conversations, if any of the rows are some.
    pub(crate) fn template(&self) -> Option<Arc<ChatTemplate>> {
        self.sources.iter().find_map(|it| it.config.template.clone())
    }

    /// For people: what an epoch takes of each source of a mixture.
    pub(crate) fn share_lines(&self, shares: &[Share]) -> Vec<String> {
        let line = |(source, share): (&Source, &Share)| {
            format!(
                "{}: {} of its {} rows an epoch, {:.2} passes; weight {}",
                source.files.described(),
                thousands(share.taken),
                thousands(share.rows),
                share.taken as f64 / share.rows as f64,
                source.weight.unwrap_or(1.0)
            )
        };
        self.sources.iter().zip(shares).map(line).collect()
    }
}

/// Tokenised rows.
pub(crate) struct Loaded {
    pub(crate) dataset: Dataset,
    /// What was taken out of it to measure on.
    pub(crate) held_out: Option<Dataset>,
    pub(crate) report: Report,
    /// For people: what was read, a line a source.
    pub(crate) lines: Vec<String>,
}

/// Refuses weights that only some sources have, and flags that do not go with them.
fn check_weights(named: &[(PathBuf, Option<f64>)], part: Part, range: Option<&str>) -> anyhow::Result<()> {
    let Some((weighted, _)) = named.iter().find(|it| it.1.is_some()) else { return Ok(()) };
    let weighted = weighted.display();
    if let Some((name, _)) = named.iter().find(|it| it.1.is_none()) {
        let name = name.display();
        return Err(user_error(format!(
            "{weighted} has a weight and {name} has none: give each source one, as in {name}:1, or none at all"
        )));
    }
    if part == Part::HeldOut {
        return Err(user_error(format!(
            "{weighted} has a weight, but rows that are measured on are taken once each; leave it out"
        )));
    }
    if range.is_some() {
        return Err(user_error(format!(
            "--rows counts through all files, one after the other, and {weighted} is a source of a mixture, with a weight; leave one out"
        )));
    }
    Ok(())
}

/// Finds what there is of each source.
struct Finder<'a> {
    flags: &'a RowFlags,
    max_length: usize,
    range: Option<&'a str>,
    base: &'a BaseModel,
    voices: &'a [Voice],
    /// Once a source has needed it.
    template: Option<Arc<ChatTemplate>>,
}

impl Finder<'_> {
    /// Files that are taken one after the other, with the columns of the first.
    fn source(&mut self, named: &[&PathBuf], part: Part) -> anyhow::Result<Source> {
        let flags = self.flags;
        let named = named.iter().map(|it| Ok(places::data(it, part)?.files)).collect::<anyhow::Result<Vec<_>>>()?;
        let files = DataFiles::find(&named.concat(), part)?;
        let columns = files.columns()?;
        let chosen = choose(&files, &columns, flags)?;
        chosen.notes.iter().for_each(|it| console::warn(&format!("{}: {it}", files.described())));
        let conversations = chosen.columns.are_conversations(&columns);
        let config = DataConfig {
            columns: chosen.columns,
            rows: self.range.map(parse_rows).transpose()?,
            max_length: self.max_length,
            excess: flags.excess_length_strategy.map_or(Excess::Truncate, Into::into),
            append_eos: flags.append_eos.map(|it| it == Switch::On),
            loss_on: loss_on(flags),
            template: if conversations { Some(self.template()?) } else { None },
        };
        Ok(Source { files, config, weight: None })
    }

    fn template(&mut self) -> anyhow::Result<Arc<ChatTemplate>> {
        if let Some(found) = &self.template {
            return Ok(found.clone());
        }
        let found = Arc::new(template(&self.flags.template, self.voices, &self.base.tokenizer)?);
        self.template = Some(found.clone());
        Ok(found)
    }
}

/// The columns that flags choose of files, if these have them.
pub(crate) fn columns_for(files: &DataFiles, flags: &RowFlags) -> Option<Columns> {
    let columns = files.columns().ok()?;
    choose(files, &columns, flags).ok().map(|it| it.columns).filter(|it| it.are_among(&columns))
}

fn choose(files: &DataFiles, columns: &[Column], flags: &RowFlags) -> anyhow::Result<Chosen> {
    Columns::choose(columns, &names(flags)?, flags.layout.map(Into::into))
        .map_err(|error| user_error(format!("{}: {error}", files.described())))
}

/// What counts in the loss, as flags say it.
pub(crate) fn loss_on(flags: &RowFlags) -> Option<LossOn> {
    if flags.train_on_inputs { Some(LossOn::All) } else { flags.loss_on.map(Into::into) }
}

/// The names of columns, as the flags give them.
fn names(flags: &RowFlags) -> anyhow::Result<ColumnNames> {
    let names = flags.columns.as_deref().map_or_else(|| Ok(ColumnNames::default()), ColumnNames::parse)?;
    let Some(text) = &flags.text_column else { return Ok(names) };
    if flags.layout.is_some_and(|it| it != LayoutArg::Text) || flags.columns.is_some() {
        return Err(user_error(format!(
            "--text-column {text} is a column of text, but --layout or --columns says that rows are something else; leave one out"
        )));
    }
    Ok(names.with_text(text))
}
