use crate::{cli::ModelsArgs, console::say, failure::message, places};
use halfbyte_data::Tokenizer;
use halfbyte_files::read_text;
use halfbyte_hub::{Cached, Kind, Revision};
use halfbyte_models::{ModelFolder, spec};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::{io::Write, path::Path};

/// `halfbyte models`: what is in the cache, and what of it can be trained.
pub(crate) fn models(args: &ModelsArgs) -> anyhow::Result<()> {
    let hub = places::hub()?;
    let found = halfbyte_hub::list(&hub.settings.cache)?;
    // A tokenizer takes its time to be read.
    let judged: Vec<Vec<Judged>> =
        found.par_iter().map(|it| it.revisions.iter().map(|at| judge(it.kind, at)).collect()).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        let each =
            found.iter().zip(&judged).flat_map(|(it, judged)| it.revisions.iter().zip(judged).map(move |at| (it, at)));
        let all: Vec<Value> = each.map(|(it, (at, judged))| object(it, at, judged)).collect();
        writeln!(out, "{}", Value::Array(all))?;
        return Ok(());
    }
    for (repo, judged) in found.iter().zip(&judged) {
        writeln!(out, "{:<48} {:>10}", repo.id, places::size(repo.bytes))?;
        if repo.revisions.is_empty() {
            writeln!(out, "  nothing that is whole; `halfbyte pull` goes on with it")?;
        }
        for (at, (used, why)) in repo.revisions.iter().zip(judged) {
            let refs = if at.refs.is_empty() { at.commit.chars().take(12).collect() } else { at.refs.join(", ") };
            let why = why.as_ref().map_or_else(String::new, |it| format!(": {it}"));
            writeln!(out, "  @{refs:<45} {:>10}  {}{why}", places::size(at.bytes), used.words())?;
        }
    }
    let total: u64 = found.iter().map(|it| it.bytes).sum();
    say(&format!("{} in {}, {}", counted(found.len()), hub.settings.cache.display(), places::size(total)));
    Ok(())
}

fn counted(n: usize) -> String {
    if n == 1 { "1 repository".into() } else { format!("{n} repositories") }
}

fn object(repo: &Cached, at: &Revision, (used, why): &Judged) -> Value {
    json!({
        "name": repo.id, "kind": if repo.kind == Kind::Model { "model" } else { "dataset" }, "refs": at.refs, "commit": at.commit,
        "folder": at.folder, "bytes": at.bytes, "trainable": *used == Used::Trained, "why_not": why,
    })
}

/// What a folder can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    Trained,
    Adapter,
    Data,
    Not,
}

impl Used {
    fn words(self) -> &'static str {
        match self {
            Used::Trained => "can be trained",
            Used::Adapter => "an adapter",
            Used::Data => "data",
            Used::Not => "cannot be trained",
        }
    }
}

/// What a folder is good for, and why not for training.
type Judged = (Used, Option<String>);

fn judge(kind: Kind, at: &Revision) -> Judged {
    if kind == Kind::DataSet {
        return (Used::Data, None);
    }
    let folder = &at.folder;
    if folder.join("adapter_config.json").exists() && !folder.join("config.json").exists() {
        return (Used::Adapter, base_of(folder).map(|it| format!("its base is {it}")));
    }
    match opens(folder) {
        Ok(()) => (Used::Trained, None),
        // The folder is named already.
        Err(error) => {
            let said = message(&error);
            let place = format!("{}/", folder.display());
            (Used::Not, Some(said.replace(&place, "").replace(&*folder.to_string_lossy(), "it")))
        }
    }
}

fn base_of(folder: &Path) -> Option<String> {
    let text = read_text(&folder.join("adapter_config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    Some(config.get("base_model_name_or_path")?.as_str()?.to_owned())
}

/// What every command does before it loads weights.
fn opens(folder: &Path) -> anyhow::Result<()> {
    let opened = ModelFolder::open(folder)?;
    spec(opened.config())?;
    Tokenizer::load(folder)?.check_vocab(opened.config().vocab_size)?;
    Ok(())
}
