//! Where the turns of the assistant stand in what a template writes, and what is told of templates.

mod common;

use std::sync::Arc;

use common::*;
use halfbyte_data::{ChatColumns, ChatTemplate, Columns, DataConfig, Dataset, IGNORE, LossOn, Result, Turns};
use serde_json::{Value, json};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source.to_owned(), "a template", &tokenizer()).unwrap()
}

fn says(role: &str, content: impl Into<Value>) -> Value {
    json!({ "role": role, "content": content.into() })
}

/// The text of a row, and of it what is learned, with a bar between parts that are apart.
fn written(row: &Value, source: &str, change: impl Fn(&mut DataConfig)) -> Result<(String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "rows.jsonl");
    std::fs::write(&path, format!("{row}\n")).unwrap();
    let turns = Turns::Messages("messages".into());
    let columns = Columns::Chat(ChatColumns { turns, system: Some("system".into()), tools: None });
    let mut config = DataConfig { columns, template: Some(Arc::new(template(source))), ..config(512) };
    change(&mut config);
    let dataset = Dataset::load(&path, &tokenizer(), &config)?.0;
    let (row, tokenizer) = (dataset.row(0), tokenizer());
    let targets: Vec<u32> = (0..row.ids.len()).map(|t| row.target(t)).collect();
    let parts = targets.split(|it| *it == IGNORE).filter(|it| !it.is_empty());
    let parts: Vec<String> = parts.map(|it| tokenizer.decode(it, false).unwrap()).collect();
    Ok((tokenizer.decode(row.ids, false).unwrap(), parts.join("|")))
}

fn learned(messages: &[Value], source: &str) -> (String, String) {
    written(&json!({ "messages": messages }), source, |_| ()).unwrap()
}

fn four_turns() -> [Value; 4] {
    [says("user", "a"), says("assistant", "b"), says("user", "c"), says("assistant", "d")]
}

#[test]
fn a_turn_ends_where_what_is_written_up_to_it_ends() {
    // Contents are written twice, so that no mark in them would tell.
    let twice = "{% for m in messages %}[{{ m.role[0] }}:{{ m.content }}/{{ m.content }}]{% endfor %}\
                 {% if add_generation_prompt %}[a:{% endif %}";
    let expected = ("[u:a/a][a:b/b][u:c/c][a:d/d]".to_owned(), "b/b]|d/d]".to_owned());
    assert_eq!(learned(&four_turns(), twice), expected);
}

#[test]
fn turns_that_touch_each_other_are_both_learned() {
    let bare = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let turns = [says("user", "a "), says("assistant", "b "), says("assistant", "c")];
    assert_eq!(learned(&turns, bare), ("a b c".into(), "b c".into()));
}

#[test]
fn a_conversation_may_begin_with_the_assistant() {
    let source = "{% for m in messages %}[{{ m.role[0] }}:{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[a:{% endif %}";
    let turns = [says("assistant", "a"), says("user", "b"), says("assistant", "c")];
    assert_eq!(learned(&turns, source), ("[a:a][u:b][a:c]".into(), "a]|c]".into()));
}

/// Turns are numbered from the end, so that what is written up to one is not how it is written when others follow.
const FROM_THE_END: &str = "{% for m in messages %}{{ loop.revindex }}[{{ PART }}]{% endfor %}";

#[test]
fn a_mark_shows_where_a_turn_stands_in_texts_and_in_parts() {
    let expected = ("4[a]3[b]2[c]1[d]".to_owned(), "b]|d]".to_owned());
    let texts = FROM_THE_END.replace("PART", "m.content");
    assert_eq!(learned(&four_turns(), &texts), expected);
    // As lists of parts, which this template takes, and that one does not.
    let parts = |it: Value| match it["content"].as_str() {
        Some(text) => says(it["role"].as_str().unwrap(), json!([{ "type": "text", "text": text }])),
        None => it,
    };
    let turns = four_turns().map(parts);
    assert_eq!(learned(&turns, &texts), expected);
    let of_parts = FROM_THE_END.replace("{{ PART }}", "{% for p in m.content %}{{ p.text }}{% endfor %}");
    assert_eq!(learned(&turns, &of_parts), expected);
    // With several, the first begins the turn and the last ends it.
    let several = json!([{ "type": "text", "text": "d" }, { "type": "text", "text": "e" }]);
    let turns = [&turns[..3], &[says("assistant", several)]].concat();
    assert_eq!(learned(&turns, &of_parts), ("4[a]3[b]2[c]1[de]".into(), "b]|de]".into()));
}

#[test]
fn a_mark_that_changes_the_text_shows_nothing() {
    let odd = FROM_THE_END.replace("PART", "m.content if m.content|length < 3 else 'long'");
    let error = written(&json!({ "messages": four_turns() }), &odd, |_| ()).unwrap_err().to_string();
    assert!(error.contains("message 1"), "{error}");
    assert!(written(&json!({ "messages": four_turns() }), &odd, |it| it.loss_on = Some(LossOn::All)).is_ok());
}

#[test]
fn a_system_message_before_a_completion_is_not_learned() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "rows.jsonl");
    std::fs::write(&path, json!({ "q": "a", "r": "b", "system": "S" }).to_string()).unwrap();
    let turns = Turns::Pair { prompt: "q".into(), input: None, answer: "r".into() };
    let load = |loss_on| {
        let columns = Columns::Chat(ChatColumns { turns: turns.clone(), system: Some("system".into()), tools: None });
        let source = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}";
        let template = Some(Arc::new(template(source)));
        let config = DataConfig { columns, template, loss_on: Some(loss_on), ..config(64) };
        let dataset = Dataset::load(&path, &tokenizer(), &config).unwrap().0;
        let row = dataset.row(0);
        let ids: Vec<u32> = (0..row.ids.len()).map(|t| row.target(t)).filter(|it| *it != IGNORE).collect();
        (tokenizer().decode(row.ids, false).unwrap(), tokenizer().decode(&ids, false).unwrap())
    };
    for loss_on in [LossOn::Completion, LossOn::Last, LossOn::Assistant] {
        assert_eq!(load(loss_on), ("[S][a][b]".into(), "b]".into()), "{loss_on:?}");
    }
}

#[test]
fn a_part_that_is_no_text_is_refused() {
    for wrong in [json!([{ "type": "text" }]), json!([{ "type": "text", "text": 7 }]), json!([{ "type": "image" }])] {
        let row = json!({ "messages": [says("user", wrong), says("assistant", "b")] });
        let error = written(&row, "{{ messages[1].content }}", |_| ()).unwrap_err().to_string();
        assert!(error.contains("only texts can be trained"), "{error}");
    }
}

#[test]
fn templates_are_told_apart_by_their_texts_and_variables() {
    let one = template("{{ messages[0].content }}");
    assert_eq!(
        (one.source(), one.origin(), one.source_with_tools()),
        ("{{ messages[0].content }}", "a template", None)
    );
    let elsewhere = ChatTemplate::new("{{ messages[0].content }}".into(), "elsewhere", &tokenizer()).unwrap();
    assert!(one == elsewhere && one.same_text(&elsewhere));
    let other = template("{{ messages[1].content }}");
    assert!(one != other && !one.same_text(&other));
    let told = one.clone().with_variables(json!({ "loud": true }).as_object().unwrap().clone());
    assert!(one != told && one.same_text(&told));
    assert!(template("{{ strftime_now('%Y') }}").takes_the_date() && !one.takes_the_date());

    let folder = tempfile::tempdir().unwrap();
    let load = |tools: &str| {
        let named = json!([{ "name": "default", "template": one.source() }, { "name": "tool_use", "template": tools }]);
        std::fs::write(file(&folder, "tokenizer_config.json"), json!({ "chat_template": named }).to_string()).unwrap();
        ChatTemplate::load(folder.path(), &tokenizer()).unwrap().unwrap()
    };
    let with_tools = load("tools");
    assert_eq!((with_tools.source(), with_tools.source_with_tools()), (one.source(), Some("tools")));
    assert!(with_tools.same_text(&load("tools")) && !with_tools.same_text(&load("others")));
    assert!(!with_tools.same_text(&one));
}

#[test]
fn values_are_written_as_python_writes_them() {
    let text = |value: &str| {
        let source = format!("{{% for m in messages %}}{{{{ m.content }}}} {{{{ {value} }}}}{{% endfor %}}");
        learned(&[says("assistant", "äbcab")], &source).0
    };
    assert_eq!(text("[true, none, {'a': 1e16, 'b': [false]}]"), "äbcab [True, None, {'a': 1e+16, 'b': [False]}]");
    assert_eq!([text("m.content.rfind('b')"), text("m.content.rfind('d')")], ["äbcab 4", "äbcab -1"]);
}
