//! Mixtures of sources with weights: what an epoch takes of each, and what is refused.

use e2e::{Finetune, Outcome, ROWS, Work, write_jsonl, write_parquet};
use serde_json::json;
use std::{fs, path::PathBuf};

/// A large file of texts and a small one of instructions.
fn sources(work: &Work) -> [String; 2] {
    let texts: Vec<Option<&str>> = ROWS.iter().cycle().take(24).map(|it| Some(*it)).collect();
    write_parquet(&work.path("texts.parquet"), &texts);
    let tasks: Vec<String> =
        ROWS[..4].iter().map(|it| json!({ "instruction": "the cat", "output": it }).to_string()).collect();
    fs::write(work.path("tasks.jsonl"), tasks.join("\n")).unwrap();
    ["texts.parquet", "tasks.jsonl"].map(|it| work.path(it).display().to_string())
}

fn finetune(work: &Work) -> Finetune {
    work.finetune().without(&["--data"]).flags("--max-length 32 --max-steps 6 --save-steps 3")
}

fn run(finetune: &Finetune, data: &[String]) -> Outcome {
    Outcome::of(finetune.command().arg("--data").args(data))
}

#[test]
fn an_epoch_takes_of_each_source_its_share_and_each_has_columns_of_its_own() {
    let work = Work::new();
    let [texts, tasks] = sources(&work);
    let mixture = finetune(&work);
    let said = run(&mixture, &[format!("{texts}:0.25"), format!("{tasks}:0.75")]).success().stderr;
    for part in [
        "texts.parquet: 24 rows read",
        "tasks.jsonl: 4 rows read",
        "texts.parquet: 7 of its 24 rows an epoch, 0.29 passes; weight 0.25",
        "tasks.jsonl: 21 of its 4 rows an epoch, 5.25 passes; weight 0.75",
        "tasks.jsonl: rows as \"### Instruction:",
        "an epoch takes 28 rows of 2 sources",
    ] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    let summary = mixture.summary();
    assert_eq!(summary["data"]["rows_read"], 28);
    let used = &summary["used"]["sources"];
    assert_eq!((&used[0]["weight"], &used[1]["weight"]), (&json!(0.25), &json!(0.75)));
    assert_eq!(used[1]["loss_on"], "assistant");
}

#[test]
fn a_mixture_resumes_with_the_bits_of_a_run_that_never_stopped_on_any_number_of_threads() {
    let work = Work::new();
    let [texts, tasks] = sources(&work);
    let data = [format!("{texts}:1"), format!("{tasks}:2")];
    for flags in ["", "--packing on --max-length 64", "--no-shuffle"] {
        let whole = finetune(&work).flags(flags).output(&work.path("whole")).flags("--overwrite --threads 1");
        run(&whole, &data).success();
        let parts = finetune(&work).flags(flags).output(&work.path("parts")).flags("--threads 3");
        run(&parts.clone().flags("--max-steps 3 --overwrite"), &data).success();
        run(&parts.clone().flags("--resume"), &data).success();
        assert!(whole.adapter_bytes() == parts.adapter_bytes(), "{flags}: the adapters differ");
        let other = [format!("{texts}:1"), format!("{tasks}:3")];
        let refused = run(&parts.clone().flags("--resume --max-steps 9"), &other);
        refused.user_error(&["checkpoint of another run", "data was"]);
    }
}

#[test]
fn a_path_that_exists_whole_has_no_weight() {
    let work = Work::new();
    write_jsonl(&work.path("rows.jsonl:0.5"), &ROWS.map(Some));
    let said = run(&finetune(&work), &[work.path("rows.jsonl:0.5").display().to_string()]).success().stderr;
    assert!(said.contains("an epoch takes each of 8 examples once"), "{said}");
}

#[test]
fn weights_that_make_no_sense() {
    let work = Work::new();
    let [texts, tasks] = sources(&work);
    let weighted = format!("{texts}:0.5");
    let missing = work.path("nowhere.jsonl").display().to_string();
    let refused = |data: &[&String], flags: &str, parts: &[&str]| {
        let data: Vec<String> = data.iter().map(|it| (*it).clone()).collect();
        run(&finetune(&work).flags(flags), &data).user_error(parts);
        assert!(!work.path("run").exists(), "nothing was written");
    };
    refused(&[&weighted, &tasks], "", &["tasks.jsonl has none", "tasks.jsonl:1"]);
    refused(&[&format!("{texts}:0"), &tasks], "", &["texts.parquet:0\"", "above 0", "leave a source out"]);
    refused(&[&format!("{texts}:-2"), &tasks], "", &["texts.parquet:-2\"", "above 0"]);
    refused(&[&weighted, &format!("{tasks}:1")], "--rows 0..4", &["--rows", "texts.parquet", "leave one out"]);
    refused(&[&weighted, &format!("{missing}:1")], "", &["nowhere.jsonl: no such file"]);
    refused(&[&format!("{texts}:1e9"), &format!("{tasks}:1e-9")], "", &["source 2", "larger weight"]);
    fs::write(work.path("odd.jsonl"), "{\"id\": 1}\n").unwrap();
    let odd = format!("{}:1", work.path("odd.jsonl").display());
    refused(&[&weighted, &odd], "", &["odd.jsonl", "no column \"text\""]);
    fs::write(work.path("wrong.jsonl"), "{\"text\": \"the cat sat\"}\n{\"text\": 7}\n").unwrap();
    let wrong = format!("{}:1", work.path("wrong.jsonl").display());
    refused(&[&weighted, &wrong], "", &["wrong.jsonl: line 2", "number"]);
    let held_out = finetune(&work).path("--data", PathBuf::from(&texts)).path("--eval-data", format!("{tasks}:1"));
    held_out.run().user_error(&["tasks.jsonl has a weight", "once each", "leave it out"]);
}
