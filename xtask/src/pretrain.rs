//! `cargo xtask pretrain`: makes the base models of the embedded default again, from nothing but their seed.
//!
//! Text, tokenizer and untrained model come from the generator in `datasets/`; the training is Halfbyte's own `--method full`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{
    generator,
    workspace::{self, check},
};

/// Working folder, ignored by git.
const WORK: &str = "out/pretrain";
const LESSONS: &str = "out/pretrain/lessons.parquet";
const QUESTIONS: &str = "out/pretrain/questions.parquet";
/// The finished models lie in `datasets/models/tiny-ARCH`.
const MODELS: &str = "datasets/models";
/// The architectures, and how often the second stage shows its rows: the smaller GPT-Neo learns them more slowly.
const ARCHS: &[(&str, &str)] = &[("llama", "1"), ("gpt-neo", "3")];
const SEED: &str = "42";

/// What the trainer is told in both stages. The order of the rows is a curriculum, so they are not shuffled.
const TRAIN_ARGS: &[&str] = &[
    "--no-shuffle",
    "--per-device-train-batch-size",
    "8",
    "--method",
    "full",
    "--compute-dtype",
    "f32",
    "--max-length",
    "128",
    "--lr-scheduler-type",
    "cosine",
    "--warmup-steps",
    "20",
    "--weight-decay",
    "0.01",
    "--adam-beta2",
    "0.95",
    "--seed",
    SEED,
    "--save-steps",
    "0",
    "--no-eval-before",
    "--overwrite",
];

/// First the language and what single words mean, with the loss on every token.
const LESSON_ARGS: &[&str] = &["--data", LESSONS, "--learning-rate", "2e-3"];

/// Then what opinions mean, from questions with the loss on the answers. Without the first stage this one learns nothing.
const QUESTION_ARGS: &[&str] = &["--data", QUESTIONS, "--learning-rate", "3e-4"];

/// What of a finished run belongs in the repository; files that a model does not have are passed over, but never the first three.
const MODEL_FILES: &[&str] =
    &["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
const REQUIRED_FILES: usize = 3;

/// Pretrains `arch`, or every architecture when none is named.
pub(crate) fn run(arch: Option<&str>) -> Result<()> {
    let archs = chosen(arch)?;
    let root = workspace::root();
    std::fs::create_dir_all(root.join(WORK)).with_context(|| format!("cannot create {WORK}"))?;
    let halfbyte = workspace::build_halfbyte(&root)?;
    generator::run(&root, &["questions", "--output", WORK])?;
    for (arch, epochs) in archs {
        let [start, taught, trained] = ["init", "lessons", "base"].map(|stage| format!("{WORK}/{arch}-{stage}"));
        generator::run(&root, &["init", "--arch", arch, "--output", &start])?;
        let stages = [(&start, &taught, LESSON_ARGS, "1"), (&taught, &trained, QUESTION_ARGS, epochs)];
        for (from, to, args, epochs) in stages {
            let mut cmd = Command::new(&halfbyte);
            cmd.args(["finetune", "--model", from, "--output", to, "--num-train-epochs", epochs]);
            check(cmd.args(args).args(TRAIN_ARGS).current_dir(&root))?;
        }
        install(&root.join(&trained), &root.join(MODELS).join(format!("tiny-{arch}")))?;
        println!("{MODELS}/tiny-{arch} is made");
    }
    Ok(())
}

fn chosen(arch: Option<&str>) -> Result<Vec<(&'static str, &'static str)>> {
    let archs: Vec<_> = ARCHS.iter().copied().filter(|it| arch.is_none_or(|name| name == it.0)).collect();
    if archs.is_empty() {
        let known: Vec<_> = ARCHS.iter().map(|it| it.0).collect();
        bail!("`--arch {}` is not known; the architectures are {}", arch.unwrap_or_default(), known.join(", "));
    }
    Ok(archs)
}

fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(missing) = MODEL_FILES[..REQUIRED_FILES].iter().find(|f| !from.join(f).exists()) {
        bail!(
            "{} holds no {missing}: the training did not finish, so {} stays as it was",
            from.display(),
            to.display()
        );
    }
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for file in MODEL_FILES.iter().filter(|f| from.join(f).exists()) {
        std::fs::copy(from.join(file), to.join(file))
            .with_context(|| format!("cannot copy {file} to {}", to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_architecture_is_refused_with_the_known_ones() {
        assert_eq!(chosen(None).unwrap(), ARCHS);
        assert_eq!(chosen(Some("gpt-neo")).unwrap(), ARCHS[1..]);
        let message = chosen(Some("bert")).unwrap_err().to_string();
        assert!(message.contains("bert") && message.contains("llama, gpt-neo"), "{message}");
    }

    #[test]
    fn an_unfinished_run_replaces_nothing() {
        let base = std::env::temp_dir().join(format!("halfbyte-xtask-pretrain-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::write(from.join("config.json"), "{}").unwrap();
        let message = install(&from, &to).unwrap_err().to_string();
        assert!(message.contains("model.safetensors") && !to.exists(), "{message}");
        for file in &MODEL_FILES[..REQUIRED_FILES] {
            std::fs::write(from.join(file), file).unwrap();
        }
        install(&from, &to).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("tokenizer.json")).unwrap(), "tokenizer.json");
        std::fs::remove_dir_all(&base).unwrap();
    }
}
