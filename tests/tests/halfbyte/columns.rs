//! Which columns of a data file are taken, and how that is told and chosen.

use e2e::{Work, run};
use serde_json::json;
use std::{ffi::OsString, fs, path::PathBuf};

/// Rows with a text beside its parts, as Alpaca's have them.
fn rows(work: &Work) -> PathBuf {
    let path = work.path("alpaca.jsonl");
    let row = json!({ "instruction": "the cat", "input": "", "output": "sat on", "text": "the cat sat on the mat" });
    fs::write(&path, format!("{row}\n{row}\n")).unwrap();
    path
}

#[test]
fn a_text_beside_instructions_is_taken_with_a_warning_unless_the_layout_is_named() {
    let work = Work::new();
    let data = rows(&work);
    let train = |flags: &str| {
        let run = work.finetune().path("--data", &data).flags("--max-steps 1 --overwrite --max-length 32").flags(flags);
        run.run().success().stderr
    };
    let silent = |text: &str| !text.contains("not looked at");
    let text = train("");
    assert!(text.contains("column text") && text.contains("12 tokens, 10 trained"), "{text}");
    assert!(text.contains("--layout instruction") && text.contains("not looked at"), "{text}");
    let meant = train("--layout text");
    assert!(meant.contains("12 tokens, 10 trained") && silent(&meant), "{meant}");
    let parts = train("--layout instruction");
    assert!(parts.contains("columns instruction, input, output") && silent(&parts), "{parts}");
    assert!(parts.contains(", 6 trained"), "the answer and its end: {parts}");
    let both = work.finetune().path("--data", &data).flags("--layout instruction --text-column text").run();
    both.user_error(&["--text-column", "--layout", "leave one out"]);
}

#[test]
fn eval_and_generate_take_the_layout_of_the_training() {
    let work = Work::new();
    let (data, model) = (rows(&work), work.model(&e2e::TinyModel::llama()));
    let ask = |command: &str, rest: &[&str]| {
        let mut args: Vec<OsString> = vec![command.into(), "--model".into(), model.clone().into()];
        args.extend(rest.iter().map(OsString::from));
        run(args)
    };
    let tokens = |flags: &[&str]| {
        let all = [&["--json", "--data", data.to_str().unwrap()], flags].concat();
        ask("eval", &all).json()["tokens"].as_u64().unwrap()
    };
    assert_eq!((tokens(&["--layout", "text"]), tokens(&["--layout", "instruction"])), (10, 6));
    let text = |flags: &[&str]| ask("generate", &[&["--max-new-tokens", "8"], flags].concat()).success().stdout;
    let laid_out = "### Instruction:\nthe cat\n\n### Response:\n";
    assert_eq!(text(&["--prompt", "the cat", "--layout", "instruction"]), text(&["--prompt", laid_out]));
}
