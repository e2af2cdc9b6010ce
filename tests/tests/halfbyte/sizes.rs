//! What is far larger than usual: a row of a megabyte, a vocabulary of 300,000.

use crate::vocabulary::with_tokens;
use e2e::{Finetune, TinyModel, Work, run, write_jsonl};
use std::{ffi::OsString, fs, path::Path};

#[test]
fn a_row_of_a_megabyte_is_cut_split_dropped_or_measured() {
    let work = Work::new();
    let data = work.path("long.jsonl");
    let long = "the dog ran over the hill ".repeat((1 << 20) / 26);
    write_jsonl(&data, &[Some("the cat sat on the mat"), Some(&long), Some("a bird flew over the old tree")]);
    let tokens = long.split_whitespace().count();
    let run = work.finetune().path("--data", &data).flags("--max-length 48 --max-steps 2");
    let cut = run.run().success();
    assert!(cut.stderr.contains("1 truncated"), "{cut}");
    let dropped = run.clone().flags("--excess-length-strategy drop --overwrite").run().success();
    assert!(dropped.stderr.contains("3 rows read, 2 used"), "{dropped}");
    let split = run.clone().flags("--excess-length-strategy split --overwrite").run().success();
    let examples = tokens.div_ceil(48) + 2;
    let said = format!("{},{:03} examples", examples / 1000, examples % 1000);
    assert!(split.stderr.contains("1 split") && split.stderr.contains(&said), "{said}: {split}");
    let base = work.model(&TinyModel::llama());
    let args = ["eval", "--model", base.to_str().unwrap(), "--max-length", "64", "--data", data.to_str().unwrap()];
    e2e::run(args).success();
    let line = long.clone() + "\nthe cat\n/quit\n";
    let mut chat = e2e::halfbyte();
    chat.args(["chat", "--max-new-tokens", "2", "--model"]).arg(&base).stdin(file(&work.path("lines"), &line));
    let outcome = e2e::Outcome::of(&mut chat).success();
    assert!(outcome.stderr.contains("positions") && !outcome.stdout.is_empty(), "it outlives the line: {outcome}");
}

/// A file to be read.
fn file(path: &Path, text: &str) -> fs::File {
    fs::write(path, text).unwrap();
    fs::File::open(path).unwrap()
}

#[test]
fn a_vocabulary_of_300_000_is_trained_continued_and_merged() {
    let work = Work::new();
    let base = with_tokens(&work, &TinyModel::llama(), 300_000);
    let data = work.path("words.jsonl");
    let row = |it: usize| format!("the cat sat on surplus{} and surplus{}", it * 37_501, 299_999 - it);
    let rows: Vec<String> = (0..8).map(row).collect();
    write_jsonl(&data, &rows.iter().map(|it| Some(it.as_str())).collect::<Vec<_>>());
    let finetune = Finetune::new(&base, &data, &work.path("run"));
    let adapter = finetune.done();
    let losses = finetune.losses();
    assert!(losses.iter().all(|it| it.is_finite() && *it > 0.0), "{losses:?}");
    let command = |name: &str, more: &str, paths: &[(&str, &Path)]| {
        let mut args: Vec<OsString> = vec![name.into(), "--adapter".into(), adapter.clone().into()];
        args.extend(paths.iter().flat_map(|(flag, path)| [OsString::from(flag), OsString::from(path)]));
        args.extend(more.split_whitespace().map(OsString::from));
        run(args).success()
    };
    let text = command("generate", "--max-new-tokens 4 --prompt surplus299999", &[("--model", &base)]).stdout;
    assert!(!text.trim().is_empty());
    let merged = work.path("merged");
    command("merge", "--dtype f32", &[("--model", &base), ("--output", &merged)]);
    let loss = |model: &Path, with: Option<&Path>| {
        let mut args: Vec<OsString> =
            ["eval", "--json", "--compute-dtype", "f32", "--model"].map(OsString::from).to_vec();
        args.extend([model.into(), "--data".into(), data.clone().into()]);
        args.extend(with.into_iter().flat_map(|it| [OsString::from("--adapter"), it.into()]));
        run(args).json()["loss"].as_f64().unwrap()
    };
    let (both, merged) = (loss(&base, Some(&adapter)), loss(&merged, None));
    assert!((both - merged).abs() < 1e-4 * both, "{both}, merged {merged}");
}
