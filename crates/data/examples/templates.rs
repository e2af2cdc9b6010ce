//! Renders conversations and compares with what transformers made of them:
//! `cargo run -p halfbyte-data --example templates -- EXPECTED.json`, whose file `tests/reference/chats.py` writes.
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::collections::BTreeMap;

use halfbyte_data::{ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::Value;

/// Templates are given the special tokens of the file, so that any tokenizer will do.
const TOKENIZER: &str = r#"{
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
  "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
  "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: templates EXPECTED.json")?;
    let all: Vec<Value> = serde_json::from_reader(std::io::BufReader::new(std::fs::File::open(path)?))?;
    let tokenizer = Tokenizer::from_json(TOKENIZER.as_bytes(), SpecialTokens::default())?;
    let (mut texts, mut both_refuse, mut joined) = (0, 0, 0);
    let mut differ: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in &all {
        let name = one["template"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let source = one["source"].as_str().unwrap_or_default().to_owned();
        let tokens = one["tokens"].as_object().cloned().unwrap_or_default();
        let template = match ChatTemplate::new(source, name, &tokenizer) {
            Ok(it) => it.with_variables(tokens),
            Err(error) => {
                differ.entry(name.to_owned()).or_default().push(error.to_string());
                continue;
            }
        };
        for (number, case) in one["cases"].as_array().into_iter().flatten().enumerate() {
            let messages = case["messages"].as_array().cloned().unwrap_or_default();
            let tools = Some(&case["tools"]).filter(|it| !it.is_null());
            let prompt = case["add_generation_prompt"] == true;
            let ours = template.render(&messages, tools, prompt);
            let wrong = match (ours, case["text"].as_str(), case["error"].as_str()) {
                (Ok(ours), Some(theirs), _) if ours == theirs => {
                    texts += 1;
                    continue;
                }
                // Parts of a content are put together for a template that knows none, which Python's would print as a list.
                (Ok(ours), ..)
                    if in_parts(&messages) && template.render(&put_together(&messages), tools, prompt)? == ours =>
                {
                    joined += 1;
                    continue;
                }
                (Err(_), None, _) => {
                    both_refuse += 1;
                    continue;
                }
                (Ok(ours), Some(theirs), _) => format!("ours {ours:?}\n      theirs {theirs:?}"),
                (Ok(ours), None, error) => format!("theirs refuses: {error:?}; ours {ours:?}"),
                (Err(error), Some(theirs), _) => format!("ours refuses: {error}; theirs {theirs:?}"),
            };
            differ.entry(name.to_owned()).or_default().push(format!("case {number}: {wrong}"));
        }
    }
    for (name, cases) in &differ {
        println!("{name}: {} differ\n    {}", cases.len(), cases[0]);
    }
    println!(
        "{} templates, {} with a difference; {texts} texts agree, {both_refuse} both refuse, {joined} with parts put together",
        all.len(),
        differ.len()
    );
    if differ.is_empty() { Ok(()) } else { Err("the two differ".into()) }
}

fn in_parts(messages: &[Value]) -> bool {
    messages.iter().any(|it| it["content"].is_array())
}

fn put_together(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        let parts = message["content"].as_array().into_iter().flatten();
        let text: String = parts.filter_map(|it| it["text"].as_str()).collect();
        message["content"] = text.into();
    }
    messages
}
