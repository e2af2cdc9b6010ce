//! What columns are taken for, and what is said of them.

mod common;

use std::sync::Arc;

use common::*;
use halfbyte_data::{
    CHATML, ChatColumns, ChatTemplate, Chosen, Column, ColumnNames, Columns, DataConfig, Dataset, Layout, Turns,
};

/// `name` is a column of texts, `name[]` one of lists.
fn columns(names: &[&str]) -> Vec<Column> {
    let kind = |it: &str| if it.ends_with("[]") { "array" } else { "string" };
    names.iter().map(|it| Column { name: it.trim_end_matches("[]").into(), kind: kind(it).into() }).collect()
}

fn choose(names: &[&str], given: &str, layout: Option<Layout>) -> Chosen {
    Columns::choose(&columns(names), &ColumnNames::parse(given).unwrap(), layout).unwrap()
}

#[test]
fn a_layout_takes_its_columns_by_all_their_names() {
    let found = |names: &[&str], given: &str, layout| choose(names, given, layout).columns.to_string();
    assert_eq!(found(&["body", "n"], "text=body", None), "column body");
    assert_eq!(found(&["question", "answer"], "", Some(Layout::Instruction)), "columns question, answer");
    // As the prompt has them, and not as they are read.
    let asked = found(&["instruction", "input", "output"], "", Some(Layout::Chat));
    assert_eq!(asked, "columns instruction, input, output");
    // A text is no list of messages, whatever its name.
    let text = choose(&["messages", "text"], "", None);
    assert_eq!((text.columns.to_string(), text.notes.len()), ("column text".to_owned(), 0));
    let with_text = ColumnNames::parse("").unwrap().with_text("body");
    assert_eq!(with_text, ColumnNames::parse("text=body").unwrap());
}

#[test]
fn what_was_not_looked_at_is_said_with_what_asks_for_it() {
    let note = |names: &[&str]| choose(names, "", None).notes.concat();
    let text = note(&["text", "instruction", "output"]);
    assert!(
        text.starts_with("column text taken, and columns instruction, output not looked at, so the prompt"),
        "{text}"
    );
    assert!(text.ends_with("--layout instruction takes the latter instead, --layout text says that this is meant"));
    let chat = note(&["messages[]", "prompt", "completion"]);
    assert!(chat.starts_with("column messages taken, and columns prompt, completion not looked at;"), "{chat}");
    assert!(chat.contains("--layout completion takes") && chat.contains("--layout chat says"), "{chat}");
}

#[test]
fn a_file_may_lack_what_a_row_may_lack() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.parquet");
    let some = |text: &str| [Some(text.to_owned())];
    write_parquet(&path, &[("question", &some("who?")), ("answer", &some("I"))], 8);
    let template = ChatTemplate::new(CHATML.to_owned(), "chatml", &tokenizer()).unwrap();
    let load = |system: Option<&str>| {
        let turns = Turns::Pair { prompt: "question".into(), input: None, answer: "answer".into() };
        let columns = Columns::Chat(ChatColumns { turns, system: system.map(str::to_owned), tools: None });
        let config = DataConfig { columns, template: Some(Arc::new(template.clone())), ..config(200) };
        Dataset::load(&path, &tokenizer(), &config).unwrap()
    };
    assert_eq!(load(Some("system")), load(None));
}
