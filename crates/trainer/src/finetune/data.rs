//! The rows of a run: what is read, said of it, and refused before anything is loaded.

use super::{settings::Settings, used::Used};
use crate::{
    console::{say, thousands, warn},
    failure::user_error,
    load::BaseModel,
    sources::{Loaded, Rows},
};
use halfbyte_data::{BatchConfig, ChatTemplate, Dataset, Examples, Part, Report, Stream, StreamConfig};
use std::sync::Arc;

/// Rows to train on: in memory, or read as training goes.
pub(super) enum Train {
    Held(Dataset, Box<Report>),
    Streamed(Stream),
}

impl Train {
    pub(super) fn examples(&self) -> Examples<'_> {
        match self {
            Train::Held(dataset, _) => dataset.into(),
            Train::Streamed(stream) => stream.into(),
        }
    }

    /// Where the rows went that were read.
    pub(super) fn report(&self) -> Report {
        match self {
            Train::Held(_, report) => **report,
            Train::Streamed(stream) => stream.report(),
        }
    }

    /// Tokens of each sequence of the largest batch that there can be, whose rows have at most `max_length` tokens.
    pub(super) fn largest(&self, config: &BatchConfig, max_length: usize) -> anyhow::Result<Vec<usize>> {
        Ok(match self {
            Train::Held(dataset, _) => dataset.epoch_size(config)?.largest,
            Train::Streamed(_) => vec![max_length; config.batch_size],
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Train::Held(dataset, _) => dataset.bytes(),
            Train::Streamed(stream) => stream.bytes(),
        }
    }
}

/// The data sets of a run.
pub(super) struct Data {
    pub(super) train: Train,
    pub(super) eval: Option<Dataset>,
    pub(super) used: Used,
    /// What wrote the conversations, if the rows are some.
    pub(super) template: Option<Arc<ChatTemplate>>,
}

impl Data {
    /// Reads what the flags name, and says what it is.
    pub(super) fn load(settings: &Settings, base: &BaseModel) -> anyhow::Result<Data> {
        let rows = settings.rows(Part::Train, base)?;
        let limit = base.folder.config().max_position_embeddings;
        let used = Used::of(base, &rows);
        let (train, mut eval) = if settings.args.streaming {
            (stream(settings, base, &rows, limit)?, None)
        } else {
            let Loaded { dataset, held_out, report, lines } = rows.load_split(&base.tokenizer, settings.hold_out()?)?;
            lines.iter().for_each(|it| say(it));
            (Train::Held(dataset, Box::new(report)), held_out)
        };
        used.lines().iter().for_each(|it| say(it));
        if let Train::Held(dataset, report) = &train {
            report.warnings().iter().for_each(|it| warn(it));
            refuse_doubtful(report, settings.doubtful_share())?;
            // Settings that give no batch are refused before the model is loaded.
            let size = dataset.epoch_size(&settings.batch_config())?;
            rows.share_lines(&size.shares).iter().for_each(|it| say(it));
            refuse_longer(dataset.longest(), limit)?;
            eval.iter().for_each(|eval| say(&eval_line(eval, dataset, settings.args.eval_split)));
        }
        if !settings.args.eval_data.is_empty() {
            let held_out = settings.rows(Part::HeldOut, base)?.load(&base.tokenizer)?;
            held_out.report.warnings().iter().for_each(|it| warn(it));
            eval = Some(held_out.dataset);
        }
        Ok(Data { train, eval, used, template: rows.template() })
    }

    /// Says of rows that were read on the way what is said of others before.
    pub(super) fn conclude(&self) {
        if let Train::Streamed(stream) = &self.train {
            let report = stream.report();
            say(&format!("read on the way: {report}"));
            report.warnings().iter().for_each(|it| warn(it));
        }
    }

    /// What they take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.train.bytes() + self.eval.as_ref().map_or(0, Dataset::bytes)
    }
}

/// The rows as a stream, and what its first ones show.
fn stream(settings: &Settings, base: &BaseModel, rows: &Rows, limit: usize) -> anyhow::Result<Train> {
    let source = &rows.sources[0];
    let files = source.files.described();
    // Any row may have so many.
    refuse_longer(settings.max_length, limit)?;
    let config = StreamConfig { buffer: settings.shuffle_buffer(), doubtful: settings.doubtful_share() };
    let (stream, first) = Stream::open(source.files.clone(), base.tokenizer.clone(), source.config.clone(), config)?;
    if settings.args.max_steps.is_none() && stream.batches_per_pass(&settings.batch_config()).is_none() {
        let why = if stream.rows().is_some() {
            "packed rows are not counted before"
        } else {
            "these files do not tell how many rows they have, as parquet files do"
        };
        return Err(user_error(format!(
            "{files}: --streaming reads rows as training goes, and {why}; say how long the run is with --max-steps"
        )));
    }
    settings.check_cadences(stream.batches_per_pass(&settings.batch_config()))?;
    say(&format!("{files}, the first rows: {first}; {}", source.config.columns));
    first.warnings().iter().for_each(|it| warn(it));
    Ok(Train::Streamed(stream))
}

fn refuse_longer(longest: usize, limit: usize) -> anyhow::Result<()> {
    if longest <= limit {
        return Ok(());
    }
    Err(user_error(format!(
        "a row has {longest} tokens, the model has positions for {limit}; use --max-length {limit}"
    )))
}

/// So many rows that teach nothing are a mistake in the data or in the flags.
fn refuse_doubtful(report: &Report, allowed: f64) -> anyhow::Result<()> {
    let share = report.doubtful() as f64 / report.rows_read.max(1) as f64;
    if share <= allowed {
        return Ok(());
    }
    Err(user_error(format!(
        "{} of {} rows teach nothing, or not what they should (see above), which is more than --max-doubtful-rows {allowed} allows; mend the data, raise --max-length, or raise that share",
        report.doubtful(),
        report.rows_read
    )))
}

/// For people: what was held out.
fn eval_line(eval: &Dataset, train: &Dataset, asked: Option<f64>) -> String {
    format!(
        "{} of {} examples are held out by what they say (--eval-split {}): their loss is measured before and after",
        thousands(eval.len()),
        thousands(eval.len() + train.len()),
        asked.unwrap_or_default()
    )
}
