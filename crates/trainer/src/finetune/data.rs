//! The rows of a run: what is read, said of it, and refused before anything is loaded.

use super::{settings::Settings, used::Used};
use crate::{
    console::{say, thousands, warn},
    failure::user_error,
    load::BaseModel,
    sources::Loaded,
};
use halfbyte_data::{ChatTemplate, Dataset, Part, Report};
use std::sync::Arc;

/// The data sets of a run.
pub(super) struct Data {
    pub(super) train: Dataset,
    pub(super) eval: Option<Dataset>,
    pub(super) report: Report,
    pub(super) used: Used,
    /// What wrote the conversations, if the rows are some.
    pub(super) template: Option<Arc<ChatTemplate>>,
}

impl Data {
    /// Reads what the flags name, and says what it is.
    pub(super) fn load(settings: &Settings, base: &BaseModel) -> anyhow::Result<Data> {
        let rows = settings.rows(Part::Train, base)?;
        let Loaded { dataset: train, held_out: mut eval, report, lines } =
            rows.load_split(&base.tokenizer, settings.hold_out()?)?;
        lines.iter().for_each(|it| say(it));
        let used = Used::of(base, &rows);
        used.lines().iter().for_each(|it| say(it));
        report.warnings().iter().for_each(|it| warn(it));
        refuse_doubtful(&report, settings.doubtful_share())?;
        if let Some(eval) = &eval {
            say(&eval_line(eval, &train, settings.args.eval_split));
        }
        if !settings.args.eval_data.is_empty() {
            let held_out = settings.rows(Part::HeldOut, base)?.load(&base.tokenizer)?;
            held_out.report.warnings().iter().for_each(|it| warn(it));
            eval = Some(held_out.dataset);
        }
        let template = rows.template();
        // Settings that give no batch are refused before the model is loaded.
        let size = train.epoch_size(&settings.batch_config())?;
        rows.share_lines(&size.shares).iter().for_each(|it| say(it));
        let limit = base.folder.config().max_position_embeddings;
        let longest = train.longest();
        if longest > limit {
            return Err(user_error(format!(
                "a row has {longest} tokens, the model has positions for {limit}; use --max-length {limit}"
            )));
        }
        Ok(Data { train, eval, report, used, template })
    }

    /// What they take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.train.bytes() + self.eval.as_ref().map_or(0, Dataset::bytes)
    }
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
