//! Which tokens a base knows beside its adapters. One that was trained with tokens of its own brings what belongs to them: the rows of
//! embedding and output head, and the tokenizer.

use crate::{console, failure::user_error};
use halfbyte_data::Tokenizer;
use halfbyte_files::read_bytes;
use halfbyte_lora::{Role, stored_rows};
use halfbyte_models::{ModelFolder, spec};
use std::path::{Path, PathBuf};

/// Gives the base as many tokens as its adapters have, as transformers' `resize_token_embeddings` does.
///
/// Only where each of them holds both tables whole: rows that were never trained would take part in every prediction. Other adapters are
/// left to whoever compares their shapes.
pub(crate) fn resize(folder: &mut ModelFolder, adapters: &[(String, PathBuf)]) -> anyhow::Result<()> {
    if adapters.is_empty() {
        return Ok(());
    }
    let (stored, tables) = (folder.config().vocab_size, tables(folder)?);
    let mut wanted: Option<(usize, &Path)> = None;
    for (_, dir) in adapters {
        let rows = table_rows(&tables, dir).unwrap_or(stored);
        match wanted {
            Some((first, of)) if rows != first => return Err(differ((of, first), (dir, rows))),
            _ => wanted = Some((rows, dir)),
        }
    }
    if let Some((rows, dir)) = wanted.filter(|it| it.0 != stored) {
        console::say(&format!(
            "{}: has embedding and output head of {rows} tokens, so the base gets as many, where it had {stored}",
            dir.display()
        ));
        folder.resize_vocabulary(rows);
    }
    Ok(())
}

fn differ((first, rows): (&Path, usize), (second, others): (&Path, usize)) -> anyhow::Error {
    user_error(format!(
        "{} was trained with {rows} tokens and {} with {others}; a base has one embedding at a time: use them one after the other, or merge one",
        first.display(),
        second.display()
    ))
}

/// The modules that have a row for every token: embedding and output head, or the one of a tied pair.
fn tables(folder: &ModelFolder) -> anyhow::Result<Vec<String>> {
    let vocab = folder.config().vocab_size;
    let all = spec(folder.config())?.into_iter();
    let tables = all.filter(|it| matches!(it.role, Role::Head | Role::Embedding) && it.shape[0] == vocab);
    Ok(tables.map(|it| it.name.trim_end_matches(".weight").to_owned()).collect())
}

/// The tokens of an adapter that holds all tables whole.
fn table_rows(tables: &[String], dir: &Path) -> Option<usize> {
    let mut rows = None;
    for table in tables {
        // What is wrong with a file says its reader.
        match (stored_rows(dir, table).unwrap_or_default(), rows) {
            (None, _) => return None,
            (Some(it), Some(other)) if it != other => return None,
            (found, _) => rows = found,
        }
    }
    rows
}

/// The tokenizer of a base beside its adapters, and the folder that it lies in: that of the adapters, where they have one and it knows
/// other tokens than the base's.
pub(crate) fn tokenizer(base: &Path, adapters: &[(String, PathBuf)]) -> anyhow::Result<(Tokenizer, PathBuf)> {
    let own = Tokenizer::load(base)?;
    let mut used: Option<(Tokenizer, &Path)> = None;
    for (_, dir) in adapters.iter().filter(|it| differs(base, &it.1)) {
        let mut found = Tokenizer::load(dir)?;
        if found.knows_what(&own) {
            continue;
        }
        if let Some((first, of)) = used.as_ref().filter(|it| !found.knows_what(&it.0)) {
            return Err(user_error(format!(
                "{} has {} tokens and {} has {}; one tokenizer is used at a time: use the adapters one after the other",
                of.display(),
                first.vocab_size(),
                dir.display(),
                found.vocab_size()
            )));
        }
        found.stop_also(&own);
        used = Some((found, dir));
    }
    let Some((tokenizer, dir)) = used else { return Ok((own, base.to_owned())) };
    console::say(&format!("{}: its tokenizer knows other tokens than the base's, and is used", dir.display()));
    Ok((tokenizer, dir.to_owned()))
}

/// Whether a folder has a `tokenizer.json` of other bytes.
fn differs(base: &Path, dir: &Path) -> bool {
    let read = |it: &Path| read_bytes(&it.join("tokenizer.json")).ok();
    read(dir).is_some_and(|it| read(base) != Some(it))
}
