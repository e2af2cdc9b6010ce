//! Writing a model folder whole or not at all, without harm to what its place holds.

use crate::failure::user_error;
use anyhow::Context;
use halfbyte_files::{DraftFolder, Lock, make_folder, settle};
use std::{ffi::OsString, path::Path};

/// Where a finished model goes.
pub(super) struct Target<'a> {
    pub(super) output: &'a Path,
    pub(super) overwrite: bool,
    /// Folders that are read and must not be replaced.
    pub(super) sources: &'a [&'a Path],
}

impl Target<'_> {
    /// Refuses a place that cannot be taken; for the time before the work begins.
    ///
    /// `--overwrite` replaces a model folder and nothing else, so that a slip of the pen deletes no other folder.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let output = self.output;
        let refuse = |why: &str| Err(user_error(format!("{}: {why}", output.display())));
        if !output.exists() {
            return Ok(());
        }
        if !output.is_dir() {
            return refuse("--output is a file; name a folder");
        }
        if !self.overwrite {
            return refuse("exists; --overwrite replaces it");
        }
        let place = output.canonicalize().with_context(|| output.display().to_string())?;
        let holds = |source: &&&Path| source.canonicalize().is_ok_and(|it| it.starts_with(&place));
        if let Some(source) = self.sources.iter().find(holds) {
            return refuse(&format!(
                "--output would replace {}, which is being read; name another folder",
                source.display()
            ));
        }
        for entry in std::fs::read_dir(output).with_context(|| output.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() || !belongs(&name) {
                return refuse(&format!(
                    "--overwrite replaces a model folder, but this one also holds {name}; move that away or name another folder"
                ));
            }
        }
        Ok(())
    }

    /// Fills a new folder, which appears under its name only when it is whole, in exchange for what stood there. What an
    /// interrupted command left of it is cleared away; nobody else can write it meanwhile.
    pub(super) fn write(&self, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let output = self.output;
        let refuse = |why: &str| Err(user_error(format!("{}: {why}", output.display())));
        let Some(name) = output.file_name() else { return refuse("--output names no folder that can be written") };
        let parent = output.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_folder(parent)?;
        let mut lock = OsString::from(".lock-");
        lock.push(name);
        let Some(_lock) = Lock::take(&parent.join(lock))? else {
            return refuse("is being written by another command; wait for its end, or name another folder");
        };
        settle(output)?;
        self.check()?;
        let draft = DraftFolder::create(output)?;
        fill(draft.folder())?;
        Ok(draft.finish()?)
    }
}

/// Whether a file is one that model folders hold.
fn belongs(name: &str) -> bool {
    const ENDINGS: [&str; 6] = [".json", ".safetensors", ".model", ".jinja", ".txt", ".md"];
    ENDINGS.iter().any(|it| name.ends_with(it)) && !name.starts_with("adapter_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn target<'a>(output: &'a Path, overwrite: bool, sources: &'a [&'a Path]) -> Target<'a> {
        Target { output, overwrite, sources }
    }

    #[test]
    fn a_failed_writing_leaves_what_was_there_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("deep/model");
        let fill = |text: &'static str| {
            move |draft: &Path| -> anyhow::Result<()> { Ok(fs::write(draft.join("config.json"), text)?) }
        };
        target(&output, false, &[]).write(fill("first")).unwrap();
        let failed = target(&output, true, &[]).write(|draft| {
            fs::write(draft.join("config.json"), "half")?;
            Err(user_error("no"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(fs::read_to_string(output.join("config.json")).unwrap(), "first");
        assert!(target(&output, false, &[]).write(fill("second")).unwrap_err().to_string().contains("--overwrite"));
        target(&output, true, &[]).write(fill("second")).unwrap();
        assert_eq!(fs::read_to_string(output.join("config.json")).unwrap(), "second");
        assert_eq!(fs::read_dir(output.parent().unwrap()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn only_a_model_folder_that_nobody_reads_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model");
        fs::create_dir_all(output.join("adapter")).unwrap();
        let refused = |sources: &[&Path]| target(&output, true, sources).check().unwrap_err().to_string();
        let inside = output.join("adapter");
        assert!(refused(&[&inside]).contains("is being read"));
        assert!(refused(&[]).contains("adapter"), "a folder inside is no part of a model");
        fs::remove_dir(&inside).unwrap();
        fs::write(output.join("thesis.pdf"), "").unwrap();
        assert!(refused(&[]).contains("thesis.pdf"));
        fs::rename(output.join("thesis.pdf"), output.join("model.safetensors")).unwrap();
        target(&output, true, &[]).check().unwrap();
    }
}
