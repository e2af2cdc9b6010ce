//! What `--output` and `--overwrite` may not replace: what is being read, and whole models that no run wrote.

use e2e::{Finetune, TinyModel, Work, run, write_jsonl};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// Runs what must be refused, with every file of the test as it was.
#[track_caller]
fn refused(work: &Work, command: &Finetune, parts: &[&str]) {
    let before = work.contents(&work.path(""));
    command.run().user_error(parts);
    let after = work.contents(&work.path(""));
    let names = |it: &[(PathBuf, Vec<u8>)]| it.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
    assert!(after == before, "files: {:?}, before: {:?}", names(&after), names(&before));
}

#[test]
fn the_base_that_is_read_is_not_replaced() {
    let work = Work::new();
    let (base, command) = (work.model(&TinyModel::llama()), work.finetune());
    let name = base.file_name().unwrap();
    let spellings =
        [base.clone(), base.join("."), work.path("new/..").join(name), base.join("inner/.."), work.path(".")];
    for output in &spellings {
        for flag in ["--overwrite", "--resume", "--no-shuffle"] {
            refused(&work, &command.clone().output(output).flags(flag), &["--output", "which is being read"]);
        }
    }
    assert!(!work.path("new").exists());
    let full = command.clone().without(&["--quant"]).flags("--method full --overwrite");
    refused(&work, &full.output(&base), &["--output would replace", "which is being read"]);
    // A folder of its own below the model's is in nobody's way.
    command.output(&base.join("run")).done();
    work.eval(&base, None, "").success();
}

#[cfg(unix)]
#[test]
fn links_to_what_is_read_are_seen_through() {
    let work = Work::new();
    let (base, command) = (work.model(&TinyModel::llama()), work.finetune().flags("--overwrite"));
    let link = work.path("link");
    std::os::unix::fs::symlink(&base, &link).unwrap();
    refused(&work, &command.clone().output(&link), &["would replace"]);
    refused(&work, &command.clone().output(&base).path("--model", &link), &["would replace"]);
    // As the cache of the hub has it: the folder is elsewhere, its files are links.
    let linked = work.path("linked");
    fs::create_dir(&linked).unwrap();
    for entry in fs::read_dir(&base).unwrap() {
        let file = entry.unwrap().path();
        std::os::unix::fs::symlink(&file, linked.join(file.file_name().unwrap())).unwrap();
    }
    refused(&work, &command.output(&base).path("--model", &linked), &["would replace"]);
}

#[test]
fn an_adapter_that_a_run_starts_from_is_not_replaced() {
    let work = Work::new();
    let adapter = work.finetune().flags("--save-steps 2").done();
    let from = |it: &Path| work.finetune().path("--init-adapter", it).flags("--overwrite");
    refused(&work, &from(&adapter), &["--output would replace", "run", "which is being read"]);
    refused(&work, &from(&adapter.join("checkpoint-2")), &["--output would replace", "checkpoint-2"]);
    from(&adapter).output(&work.path("next")).done();
}

#[test]
fn rows_that_are_read_are_not_written_over() {
    let work = Work::new();
    let folder = work.finetune().done();
    let rows = folder.join("metrics.jsonl");
    write_jsonl(&rows, &e2e::ROWS.map(Some));
    let command = work.finetune().flags("--overwrite");
    refused(&work, &command.clone().path("--data", &rows), &["--output would replace", "metrics.jsonl"]);
    refused(&work, &command.clone().path("--eval-data", &rows), &["--output would replace", "metrics.jsonl"]);
    // That they lie beside it does no harm.
    command.done();
}

#[test]
fn a_whole_model_that_no_run_wrote_is_kept() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let arg = |it: &str| OsString::from(it);
    let quantized = work.path("quantized");
    run([arg("quantize"), arg("--model"), base.into(), arg("--output"), quantized.clone().into()]).success();
    let other = work.model(&TinyModel { shards: 2, ..TinyModel::of(TinyModel::llama().family) });
    for kept in [quantized, other] {
        let command = work.finetune().output(&kept).flags("--overwrite");
        refused(&work, &command, &["whole model", "config.json", ".safetensors", "another folder", "by hand"]);
    }
}

#[test]
fn a_fully_trained_model_is_replaced_by_the_next_run() {
    let work = Work::new();
    let full = work.finetune().without(&["--quant"]).flags("--method full");
    let folder = full.done();
    let before = fs::read(folder.join("model.safetensors")).unwrap();
    full.flags("--overwrite --seed 7").done();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() != before);
    work.finetune().flags("--overwrite").done();
    assert!(!folder.join("model.safetensors").exists() && folder.join("adapter_model.safetensors").exists());
}
