//! Where else an adapter may be, for whoever named a folder that holds none.

use std::path::{Path, PathBuf};

/// Why a folder has no `adapter_config.json` of its own, as far as can be told.
pub(crate) fn no_config(dir: &Path, config: &str) -> String {
    if !dir.exists() {
        return "there is no such folder; check the path of --adapter".into();
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|it| it.path());
    let mut nested: Vec<PathBuf> = entries.filter(|it| it.join(config).exists()).collect();
    nested.sort_by_key(|it| (step(it), it.clone()));
    if let Some(last) = nested.last() {
        let more = if nested.len() > 1 { format!(" (and {} more folders)", nested.len() - 1) } else { String::new() };
        return format!("is missing, but there is one in {}{more}: name that folder", last.display());
    }
    if dir.join("config.json").exists() {
        return "is missing; this is a folder of a whole model: pass it with --model, without --adapter if the adapter is merged into it".into();
    }
    "is missing; an adapter's folder has one beside adapter_model.safetensors".into()
}

/// The number of `checkpoint-N`.
fn step(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok()
}
