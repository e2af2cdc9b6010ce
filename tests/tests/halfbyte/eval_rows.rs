//! What `eval` says of its rows: how they were taken, and by which flags the figure at the end of a training comes again.

use crate::chat::{eval, talks, with_template, written};
use e2e::{Outcome, Work};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is said where rows are taken otherwise than by the run of the adapter.
const OTHERWISE: &str = "its run took rows otherwise";

/// An adapter that was trained, and measured, on these rows with these flags, and its held-out loss at the end.
fn trained(work: &Work, model: &Path, data: &Path, flags: &str) -> (PathBuf, f64) {
    let run = work.finetune().path("--model", model).path("--data", data).path("--eval-data", data);
    let run = run.flags("--max-steps 2 --max-doubtful-rows 1 --quant none --method lora --overwrite").flags(flags);
    (run.done(), run.summary()["eval_loss_after"].as_f64().unwrap())
}

/// The flags that are said to bring the rows of the run back; none where nothing is said.
fn wanted(outcome: &Outcome) -> Option<String> {
    let line = outcome.stderr.lines().find(|it| it.contains(OTHERWISE))?;
    Some(line.rsplit_once("in its training, ").unwrap().1.to_owned())
}

#[test]
fn it_is_said_how_rows_were_taken_and_how_the_run_took_them() {
    let work = Work::new();
    let (model, data) = (with_template(&work), talks(&work, "talks.jsonl"));
    let (adapter, expected) = trained(&work, &model, &data, "--train-on-inputs --append-eos on --max-length 16");
    let now = eval(&model, &data, Some(&adapter), "").success();
    let line = now.stderr.lines().find(|it| it.contains("8 rows read, 8 used")).expect("a line of the rows");
    for part in
        ["talks.jsonl", "column messages", "chat_template.jinja", "without the end-of-text", "loss on assistant"]
    {
        assert!(line.contains(part), "`{part}` is not in {line}");
    }
    let flags = "--loss-on all --append-eos on --max-length 16";
    assert_eq!(wanted(&now).unwrap(), format!("give {flags}"));
    let again = eval(&model, &data, Some(&adapter), flags).success();
    assert_eq!(wanted(&again), None, "{again}");
    assert!(again.stderr.contains("8 truncated") && again.stderr.contains("loss on all"), "{again}");
    let found = again.json()["loss"].as_f64().unwrap();
    assert!((found - expected).abs() < 1e-5 * expected, "{found}, at the end of training {expected}");

    // What changes nothing in these rows is no difference.
    let same = "--train-on-inputs --append-eos on --excess-length-strategy drop";
    assert_eq!(wanted(&eval(&model, &data, None, same).success()), None, "a base has no run");
    let (adapter, _) = trained(&work, &model, &data, "--max-length 64 --loss-on assistant");
    assert_eq!(wanted(&eval(&model, &data, Some(&adapter), "--excess-length-strategy drop").success()), None);
    let shorter = eval(&model, &data, Some(&adapter), "--excess-length-strategy split --max-length 16").success();
    assert_eq!(wanted(&shorter).unwrap(), "give --max-length 64 --excess-length-strategy truncate");
    // Of an adapter that another program wrote nothing is known.
    let config = adapter.join("config.toml");
    fs::remove_file(&config).unwrap();
    let foreign = eval(&model, &data, Some(&adapter), "--loss-on last").success();
    assert!(!foreign.stderr.contains("config.toml"), "{foreign}");
    fs::write(&config, "[tool]\nname = 1\n").unwrap();
    let unknown = eval(&model, &data, Some(&adapter), "").success();
    assert!(unknown.stderr.contains("config.toml: is not a run's settings"), "{unknown}");
}

#[test]
fn columns_layout_and_template_are_compared() {
    let work = Work::new();
    let model = with_template(&work);
    let row = json!({ "question": "the cat", "answer": "sat on the mat" });
    let data = written(&work, "tasks.jsonl", &vec![row; 4]);
    let (adapter, expected) =
        trained(&work, &model, &data, "--layout chat --max-length 64 --chat-template-kwargs {\"loud\":true}");
    let measured = |flags: &str| eval(&model, &data, Some(&adapter), flags).success();
    assert_eq!(wanted(&measured("")).unwrap(), "give --layout chat --chat-template-kwargs '{\"loud\":true}'");
    let flags = "--layout chat --chat-template-kwargs {\"loud\":true}";
    let same = measured(flags);
    assert_eq!(wanted(&same), None, "{same}");
    assert!((same.json()["loss"].as_f64().unwrap() - expected).abs() < 1e-5 * expected);
    assert_eq!(wanted(&measured("--layout chat")).unwrap(), "give --chat-template-kwargs '{\"loud\":true}'");
    assert_eq!(wanted(&measured(&format!("{flags} --chat-template chatml"))).unwrap(), "leave out --chat-template");

    let (adapter, _) = trained(&work, &model, &data, "--max-length 64");
    let chosen = "--columns prompt=question,completion=answer";
    let found = eval(&model, &data, Some(&adapter), chosen).success();
    assert_eq!(wanted(&found).unwrap(), "leave out --columns");
    // Rows that have no such columns are others.
    let (adapter, _) = trained(&work, &model, &data, &format!("--max-length 64 {chosen}"));
    let other = eval(&model, &talks(&work, "talks.jsonl"), Some(&adapter), "").success();
    assert_eq!(wanted(&other), None, "{other}");
}
