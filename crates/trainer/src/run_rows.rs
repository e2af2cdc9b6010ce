//! How a run took its rows, as `config.toml` beside its adapter says, against how they are taken now: by another length or another loss
//! the figure at the end of a training does not come again.

use crate::{
    cli::{ReadArgs, Switch},
    finetune::FinetuneArgs,
    load::BaseModel,
    rows::{ExcessArg, RowFlags, TemplateFlags},
    sources::{Loaded, Rows, columns_for, loss_on},
    templates::Voice,
};
use clap::ValueEnum;
use halfbyte_data::{DataConfig, Excess, Report};
use halfbyte_files::read_text;
use serde_json::Value;
use std::path::Path;

/// For people: the flags by which these rows would be taken as in the run that made the adapter in `dir`. None where they are, or where
/// nothing says how they were.
pub(crate) fn difference(
    dir: &Path,
    args: &ReadArgs,
    (rows, loaded): (&Rows, &Loaded),
    (base, voice): (&BaseModel, &Voice),
) -> anyhow::Result<Option<String>> {
    let path = dir.join("config.toml");
    if !path.exists() {
        return Ok(None);
    }
    // A file of that name may be somebody else's.
    let Some(run) = read_text(&path).ok().and_then(|it| toml::from_str::<FinetuneArgs>(&it).ok()) else {
        return Ok(Some(format!(
            "{}: is not a run's settings as this version of Halfbyte knows them, so they are not compared with those of this evaluation",
            path.display()
        )));
    };
    let mut flags = Flags::default();
    for source in &rows.sources {
        let (was, now) = (run.row_flags(), &source.config);
        let columns = flags.columns(columns_for(&source.files, &was), now, (&was, &args.row));
        let then = DataConfig {
            columns,
            max_length: run.max_length.unwrap_or(now.max_length),
            excess: was.excess_length_strategy.map_or(Excess::Truncate, Into::into),
            append_eos: was.append_eos.map(|it| it == Switch::On),
            loss_on: loss_on(&was),
            ..now.clone()
        };
        // With other columns other things go without saying.
        let told = DataConfig { columns: then.columns.clone(), ..now.clone() };
        if then.learns() != told.learns() {
            flags.give("--loss-on", &format!("{:?}", then.learns()).to_lowercase());
        }
        if then.appends_eos() != told.appends_eos() {
            flags.give("--append-eos", if then.appends_eos() { "on" } else { "off" });
        }
        flags.length(&then, now, (loaded.dataset.longest(), &loaded.report), was.excess_length_strategy);
        // The run's template lies beside its adapter.
        if let Some(template) = &now.template
            && args.row.template.chat_template.is_some()
            && !voice.writes_by(template, &base.tokenizer)?
        {
            flags.left_out.push("--chat-template");
        }
        if now.template.is_some() || then.columns != now.columns {
            flags.variables(&was.template, &args.row.template);
        }
    }
    Ok(flags.sentence().map(|it| {
        format!(
            "{}: its run took rows otherwise ({}); to have them as in its training, {it}",
            dir.display(),
            path.display()
        )
    }))
}

/// Flags to be given, and others to be left out.
#[derive(Default)]
struct Flags {
    given: Vec<String>,
    left_out: Vec<&'static str>,
}

impl Flags {
    fn give(&mut self, flag: &str, value: &str) {
        self.given.push(format!("{flag} {value}"));
    }

    /// A flag as it was, where it is another now.
    fn as_was(&mut self, flag: &'static str, was: Option<&str>, now: Option<&str>) {
        match was {
            Some(was) if now != Some(was) => self.give(flag, was),
            None if now.is_some() => self.left_out.push(flag),
            _ => {}
        }
    }

    /// The columns that the run would have taken; where these rows have none such, they are others, and no flag brings them back.
    fn columns(
        &mut self,
        then: Option<halfbyte_data::Columns>,
        now: &DataConfig,
        (was, is): (&RowFlags, &RowFlags),
    ) -> halfbyte_data::Columns {
        let Some(then) = then.filter(|it| *it != now.columns) else { return now.columns.clone() };
        let name = |it: &RowFlags| it.layout.and_then(|it| Some(it.to_possible_value()?.get_name().to_owned()));
        self.as_was("--layout", name(was).as_deref(), name(is).as_deref());
        self.as_was("--columns", was.columns.as_deref(), is.columns.as_deref());
        self.as_was("--text-column", was.text_column.as_deref(), is.text_column.as_deref());
        then
    }

    /// What becomes of long rows matters where there are some.
    fn length(
        &mut self,
        then: &DataConfig,
        now: &DataConfig,
        (longest, report): (usize, &Report),
        excess: Option<ExcessArg>,
    ) {
        let too_long = report.truncated + report.dropped + report.split > 0;
        let differs = match then.max_length.cmp(&now.max_length) {
            std::cmp::Ordering::Less => too_long || longest > then.max_length,
            std::cmp::Ordering::Equal => false,
            std::cmp::Ordering::Greater => too_long,
        };
        if differs {
            self.give("--max-length", &then.max_length.to_string());
        }
        if then.excess != now.excess && (too_long || differs) {
            let value = excess.unwrap_or(ExcessArg::Truncate).to_possible_value();
            self.give("--excess-length-strategy", value.as_ref().map_or("truncate", |it| it.get_name()));
        }
    }

    /// What the template is told.
    fn variables(&mut self, was: &TemplateFlags, is: &TemplateFlags) {
        let parsed = |it: &TemplateFlags| serde_json::from_str::<Value>(it.chat_template_kwargs.as_deref()?).ok();
        if parsed(was) != parsed(is) {
            let quoted = was.chat_template_kwargs.as_ref().map(|it| format!("'{it}'"));
            self.as_was("--chat-template-kwargs", quoted.as_deref(), is.chat_template_kwargs.as_deref());
        }
    }

    fn sentence(mut self) -> Option<String> {
        // Several sources may ask for the same.
        self.given.dedup();
        self.left_out.dedup();
        let given = (!self.given.is_empty()).then(|| format!("give {}", self.given.join(" ")));
        let left_out = (!self.left_out.is_empty()).then(|| format!("leave out {}", self.left_out.join(" ")));
        match (given, left_out) {
            (Some(given), Some(left_out)) => Some(format!("{given} and {left_out}")),
            (given, left_out) => given.or(left_out),
        }
    }
}
