//! Rows as texts that are to be continued.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use halfbyte_data::{
    CHATML, ChatTemplate, ColumnNames, Columns, DataFiles, Layout, Prompt, PromptConfig, Result, columns,
    instruction_prompt,
};
use serde_json::{Value, json};

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn rows(folder: &Path, rows: &[Value]) -> PathBuf {
    written(folder, "rows.jsonl", &rows.iter().map(|it| format!("{it}\n")).collect::<String>())
}

fn read(path: &Path, names: &str, layout: Option<Layout>, change: impl Fn(&mut PromptConfig)) -> Result<Vec<Prompt>> {
    let chosen = Columns::choose_prompts(&columns(path)?, &ColumnNames::parse(names)?, layout)?;
    let template = ChatTemplate::new(CHATML.to_owned(), "chatml", &tokenizer())?;
    let mut config = PromptConfig {
        columns: chosen.columns,
        rows: None,
        template: Some(Arc::new(template)),
        system: None,
        limit: 1000,
    };
    change(&mut config);
    Prompt::read(&DataFiles::one(path), &tokenizer(), &config)
}

fn texts(path: &Path, names: &str, layout: Option<Layout>) -> Vec<String> {
    read(path, names, layout, |_| ()).unwrap().into_iter().map(|it| it.text).collect()
}

fn chat(turns: &[(&str, &str)]) -> String {
    let all: String = turns.iter().map(|(role, said)| format!("<|im_start|>{role}\n{said}<|im_end|>\n")).collect();
    all + "<|im_start|>assistant\n"
}

#[test]
fn a_prompt_is_what_a_training_would_put_before_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let of = |row: Value, layout| texts(&rows(folder.path(), &[row]), "", layout).remove(0);
    let task = json!({ "instruction": "add", "input": "1 2", "output": "3" });
    assert_eq!(of(task.clone(), None), instruction_prompt("add", Some("1 2")));
    assert_eq!(of(task, Some(Layout::Chat)), chat(&[("user", "add\n1 2")]));
    assert_eq!(of(json!({ "question": "who?", "answer": "I" }), None), instruction_prompt("who?", None));
    assert_eq!(of(json!({ "prompt": "once ", "completion": "upon" }), None), "once ");
    assert_eq!(of(json!({ "text": "once upon" }), None), "once upon");
    let asked = json!({ "role": "user", "content": "a" });
    let said = json!({ "role": "assistant", "content": "b" });
    let messages = json!([asked, said, { "role": "user", "content": "c" }]);
    let whole = chat(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    assert_eq!(of(json!({ "messages": messages }), None), whole, "nothing is answered yet");
    assert_eq!(of(json!({ "messages": [asked, said] }), None), chat(&[("user", "a")]), "the answer is left out");
    let system = json!({ "messages": [asked, said], "system": "be kind" });
    assert_eq!(of(system, None), chat(&[("system", "be kind"), ("user", "a")]));
    assert_eq!(of(json!({ "prompt": [asked], "completion": [said] }), None), chat(&[("user", "a")]));
}

#[test]
fn an_answer_need_not_be_there_and_is_not_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let of = |row: Value, names: &str, layout| texts(&rows(folder.path(), &[row]), names, layout).remove(0);
    assert_eq!(of(json!({ "instruction": "add", "input": "1 2" }), "", None), instruction_prompt("add", Some("1 2")));
    assert_eq!(of(json!({ "question": "who?" }), "", None), instruction_prompt("who?", None));
    assert_eq!(of(json!({ "prompt": "once" }), "", None), "once");
    assert_eq!(of(json!({ "prompt": "once" }), "", Some(Layout::Chat)), chat(&[("user", "once")]));
    let asked = json!({ "prompt": "once", "system": "be kind" });
    assert_eq!(of(asked, "", Some(Layout::Chat)), chat(&[("system", "be kind"), ("user", "once")]));
    assert_eq!(of(json!({ "question": "who?", "answer": 7 }), "", None), instruction_prompt("who?", None));
    assert_eq!(of(json!({ "question": "who?", "answer": null }), "", None), instruction_prompt("who?", None));
    assert_eq!(of(json!({ "q": "once", "n": 3 }), "prompt=q", None), "once");
    assert_eq!(of(json!({ "q": "once", "n": 3 }), "instruction=q", None), instruction_prompt("once", None));
}

#[test]
fn a_line_of_text_is_the_prompt_of_any_layout() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "lines.txt", "who?\nwhy not?\n");
    assert_eq!(texts(&path, "", None), ["who?", "why not?"]);
    assert_eq!(texts(&path, "", Some(Layout::Text)), ["who?", "why not?"]);
    assert_eq!(texts(&path, "", Some(Layout::Completion)), ["who?", "why not?"]);
    assert_eq!(texts(&path, "", Some(Layout::Instruction))[1], instruction_prompt("why not?", None));
    assert_eq!(texts(&path, "", Some(Layout::Chat))[0], chat(&[("user", "who?")]));
    let prompts = read(&path, "", Some(Layout::Chat), |it| it.system = Some("be kind".into())).unwrap();
    assert_eq!(prompts[0].text, chat(&[("system", "be kind"), ("user", "who?")]));
    let prompts = read(&path, "", None, |it| it.rows = Some(1..2)).unwrap();
    assert_eq!((prompts.len(), &*prompts[0].text), (1, "why not?"));
    assert_eq!(prompts[0].ids, tokenizer().encode_prompt("why not?").unwrap());
}

#[test]
fn a_row_that_asks_nothing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = |name: &str, value: Value| json!({ name: value });
    let refused = |name: &str, value: Value, fine: Value, limit: usize| {
        let path = rows(folder.path(), &[good(name, fine), good(name, value)]);
        let error = read(&path, "", None, |it| it.limit = limit).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl: row 1: "), "{error}");
        error
    };
    assert!(refused("prompt", json!(null), json!("a"), 100).contains("prompt is null"));
    assert!(refused("prompt", json!(" \n"), json!("a"), 100).contains("has no text"));
    assert!(refused("text", json!("a b c d"), json!("a"), 7).contains("7 tokens, and the model has positions for 7"));
    let asked = json!([{ "role": "user", "content": "a" }]);
    assert!(refused("messages", json!([]), asked.clone(), 100).contains("has no text"));
    let said = json!([{ "role": "assistant", "content": "a" }]);
    assert!(refused("messages", said, asked.clone(), 100).contains("nothing comes before the answer"));
    assert!(refused("messages", json!([{ "role": "user" }]), asked, 100).contains("no content"));
    let empty = written(folder.path(), "empty.txt", "");
    assert!(read(&empty, "", None, |_| ()).unwrap_err().to_string().contains("empty.txt"));
}
