//! Going on from a checkpoint: is it one of this run?

use super::{args::FinetuneArgs, output::RunFolder, settings::Settings};
use crate::{console::say, failure::user_error};
use halfbyte_data::Examples;
use halfbyte_train::{Optim, RunState};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Settings that may change between a run and its continuation.
const MAY_CHANGE: [&str; 22] = [
    "device",
    "early_stopping_patience",
    "early_stopping_threshold",
    "eval_data",
    "eval_labels",
    "eval_rows",
    "eval_steps",
    "gradient_checkpointing",
    "load_best_model_at_end",
    "logging_first_step",
    "logging_steps",
    "max_minutes",
    "max_steps",
    "no_eval_before",
    "no_token_cache",
    "num_train_epochs",
    "offload_activations",
    "optim_resident_mib",
    "samples",
    "save_steps",
    "save_total_limit",
    "threads",
];

/// What younger settings were, in effect, when checkpoints did not name them yet.
const BEFORE_THERE_WAS: [(&str, &str); 1] = [("packing", "off")];

/// What the command keeps in a checkpoint beside the library's own.
pub(super) fn notes(
    settings: &Settings,
    data: Examples<'_>,
    eval_loss_before: Option<f64>,
) -> anyhow::Result<Map<String, Value>> {
    let mut notes = Map::new();
    notes.insert("eval_loss_before".into(), json!(eval_loss_before));
    notes.insert("settings".into(), serde_json::to_value(&settings.args)?);
    for (key, _, found) in sources(settings, data) {
        notes.insert(key.into(), found);
    }
    Ok(notes)
}

/// By what is known what a run learns from, whatever its files are called: the key, what it is, and the number, null where that is not
/// known before all is read.
fn sources(settings: &Settings, data: Examples<'_>) -> [(&'static str, &'static str, Value); 2] {
    let rows = match data {
        Examples::Held(dataset) => json!(format!("{:016x}", dataset.fingerprint())),
        Examples::Streamed(_) => Value::Null,
    };
    [
        ("base_weights", "the weights of the base", json!(settings.base.weights)),
        ("rows", "the rows to be trained on", rows),
    ]
}

/// The held-out loss before the first step.
pub(super) fn eval_loss_before(state: &RunState) -> Option<f64> {
    state.notes.get("eval_loss_before")?.as_f64()
}

/// Restores the newest checkpoint, if `--resume` asks for it and there is one. One at the end of a run that did not come to save
/// its result goes on, too.
pub(super) fn resume(
    settings: &Settings,
    folder: &RunFolder,
    optim: &mut Optim,
    data: Examples<'_>,
) -> anyhow::Result<Option<RunState>> {
    if !settings.args.resume {
        return Ok(None);
    }
    let Some((step, path)) = folder.checkpoints().all()?.pop() else { return Ok(None) };
    let state = RunState::read(&path)?;
    check(&path, &state, &settings.args, data.count())?;
    check_sources(&path, &state, settings, data)?;
    let (_, total) = settings.steps(data)?;
    let waited = state.best.map_or(0, |it| it.since);
    let given_up = settings.early_stopping.is_some_and(|it| waited >= it.patience);
    if given_up && folder.is_complete() {
        return Err(user_error(format!(
            "the run has ended already: {waited} evaluations brought no lower held-out loss (checkpoint at step {step}); raise --early-stopping-patience to go on"
        )));
    }
    if step > total || (step == total && folder.is_complete()) {
        return Err(user_error(format!(
            "the run of {total} steps has ended already (checkpoint at step {step}); raise --max-steps or --num-train-epochs to go on"
        )));
    }
    optim.load(&path, state.taken())?;
    say(&format!("going on from {} (step {step})", path.display()));
    if step == total || given_up {
        say("all steps were taken; what is left is to measure and to save");
    }
    Ok(Some(state))
}

/// Refuses a checkpoint of a run that learned from something else; those of earlier versions do not say from what.
fn check_sources(path: &Path, state: &RunState, settings: &Settings, data: Examples<'_>) -> anyhow::Result<()> {
    for (key, what, now) in sources(settings, data) {
        let then = state.notes.get(key).unwrap_or(&Value::Null);
        if !then.is_null() && !now.is_null() && *then != now {
            return Err(user_error(format!(
                "{}: is a checkpoint of another run: {what} are others than they were; put back what was there (data, tokenizer, chat template, base), or --overwrite",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Refuses a checkpoint of another run.
fn check(path: &Path, state: &RunState, settings: &FinetuneArgs, examples: usize) -> anyhow::Result<()> {
    let stored: FinetuneArgs = state.note(path, "settings")?;
    let (mut then, now) = (toml::Table::try_from(&stored)?, toml::Table::try_from(settings)?);
    for (key, was) in BEFORE_THERE_WAS {
        then.entry(key).or_insert_with(|| was.into());
    }
    let keys = then.keys().chain(now.keys());
    if let Some(key) = keys.filter(|it| !MAY_CHANGE.contains(&it.as_str())).find(|it| then.get(*it) != now.get(*it)) {
        let show = |table: &toml::Table| table.get(key).map_or_else(|| "unset".to_owned(), ToString::to_string);
        return Err(user_error(format!(
            "{}: is a checkpoint of another run: {key} was {} and is now {}; use the same settings, or --overwrite",
            path.display(),
            show(&then),
            show(&now)
        )));
    }
    if state.examples != examples {
        return Err(user_error(format!(
            "{}: is a checkpoint of another run: the data had {} examples and now has {examples}",
            path.display(),
            state.examples
        )));
    }
    Ok(())
}
