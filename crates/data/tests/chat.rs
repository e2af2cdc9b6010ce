//! Conversations: which columns hold them, how they are written, which tokens of them are learned.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use halfbyte_data::{
    CHATML, ChatTemplate, ColumnNames, Columns, DataConfig, Dataset, Error, Excess, IGNORE, INSTRUCTION, Layout,
    LossOn, Report, SpecialTokens, Tokenizer, columns,
};
use serde_json::{Value, json};

const START: u32 = 1000;
const END: u32 = 1001;

/// The usual tokenizer, with ChatML's tokens.
fn chat_tokenizer() -> Tokenizer {
    Tokenizer::from_json(chat_json().to_string().as_bytes(), special()).unwrap()
}

fn chat_json() -> Value {
    let mut json = tokenizer_json();
    for (id, content) in [(START, "<|im_start|>"), (END, "<|im_end|>")] {
        json["added_tokens"].as_array_mut().unwrap().push(json!({"id": id, "content": content, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
        json["model"]["vocab"][content] = id.into();
    }
    json
}

/// A turn's thinking is left out once others follow it.
const FORGETFUL: &str = r"{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and not loop.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}";

/// The system message stands in the last turn of the user, so that earlier turns change with every turn.
const MOVING: &str = r"{{- bos_token }}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'user' %}
        {%- set ahead = messages[0].content + ' ' if messages[0].role == 'system' and loop.revindex <= 2 else '' %}
        {{- '[' + ahead + message.content + ']' }}
    {%- else %}
        {{- message.content + eos_token }}
    {%- endif %}
{%- endfor %}";

/// Says itself what the assistant writes.
const MARKED: &str = r"{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}";

fn template(source: &str) -> Arc<ChatTemplate> {
    Arc::new(ChatTemplate::new(source.to_owned(), "a template", &chat_tokenizer()).unwrap())
}

fn chat_config(path: &Path, source: &str) -> DataConfig {
    let chosen = Columns::choose(&columns(path).unwrap(), &ColumnNames::default(), None).unwrap();
    DataConfig { columns: chosen.columns, template: Some(template(source)), ..config(512) }
}

fn written(folder: &tempfile::TempDir, rows: &[Value]) -> std::path::PathBuf {
    let path = file(folder, "rows.jsonl");
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path
}

fn load(rows: &[Value], source: &str, change: impl Fn(&mut DataConfig)) -> halfbyte_data::Result<(Dataset, Report)> {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, rows);
    let mut config = chat_config(&path, source);
    change(&mut config);
    Dataset::load(&path, &chat_tokenizer(), &config)
}

/// The text of a row, and that of the tokens which are learned, with a bar between those that are apart.
fn texts_of(dataset: &Dataset, row: usize) -> (String, String) {
    let (row, tokenizer) = (dataset.row(row), chat_tokenizer());
    let mut learned = String::new();
    for t in 0..row.ids.len() {
        match row.target(t) {
            IGNORE if !learned.ends_with('|') && !learned.is_empty() => learned.push('|'),
            IGNORE => {}
            id => learned += &tokenizer.decode(&[id], false).unwrap(),
        }
    }
    (tokenizer.decode(row.ids, false).unwrap(), learned.trim_end_matches('|').to_owned())
}

fn says(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn two_turns() -> Value {
    json!({ "messages": [says("system", "S"), says("user", "a b"), says("assistant", "one"), says("user", "c"), says("assistant", "two")] })
}

const WRITTEN: &str = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n\
                       <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n";

#[test]
fn what_a_tokenizer_puts_around_a_text_is_not_put_around_what_a_template_writes() {
    let mut json = chat_json();
    json["post_processor"] = surrounding();
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), special()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, &[two_turns()]);
    let ids = |append_eos| {
        let config = DataConfig { append_eos, ..chat_config(&path, CHATML) };
        Dataset::load(&path, &tokenizer, &config).unwrap().0.row(0).ids.to_vec()
    };
    let expected = tokenizer.encode_plain(WRITTEN).unwrap();
    assert_eq!(ids(None), expected);
    assert_eq!(ids(Some(true)), [&expected[..], &[EOS]].concat());
}

#[test]
fn the_turns_of_the_assistant_are_learned_with_their_ends() {
    let learned = |loss_on| {
        let (dataset, report) = load(&[two_turns()], CHATML, |it| it.loss_on = loss_on).unwrap();
        let (text, learned) = texts_of(&dataset, 0);
        assert_eq!(text, WRITTEN);
        assert_eq!((report.rows_used, report.unended, report.doubled_bos), (1, 0, 0));
        learned
    };
    assert_eq!(learned(None), "one<|im_end|>\n|two<|im_end|>\n");
    assert_eq!(learned(Some(LossOn::Assistant)), "one<|im_end|>\n|two<|im_end|>\n");
    assert_eq!(learned(Some(LossOn::Last)), "two<|im_end|>\n");
    assert_eq!(learned(Some(LossOn::Completion)), "two<|im_end|>\n");
    assert_eq!(learned(Some(LossOn::All)), WRITTEN.strip_prefix("<|im_start|>").unwrap());
}

#[test]
fn a_template_that_marks_what_the_assistant_writes_is_believed() {
    let (dataset, _) = load(&[two_turns()], MARKED, |_| {}).unwrap();
    assert_eq!(texts_of(&dataset, 0), (WRITTEN.to_owned(), "one<|im_end|>|two<|im_end|>".to_owned()));
    let (last, _) = load(&[two_turns()], MARKED, |it| it.loss_on = Some(LossOn::Last)).unwrap();
    assert_eq!(texts_of(&last, 0).1, "two<|im_end|>");
}

#[test]
fn turns_that_are_written_otherwise_later_on_are_found() {
    let thought = |answer: &str| format!("<think>\nhm {answer}\n</think>\n\n{answer} ");
    let row = json!({ "messages": [says("user", "a"), says("assistant", &thought("one")), says("user", "c"), says("assistant", &thought("two"))] });
    let (dataset, _) = load(&[row], FORGETFUL, |_| {}).unwrap();
    let (text, learned) = texts_of(&dataset, 0);
    assert!(text.starts_with("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"), "{text}");
    // The prompt holds the beginning of the last thought, so that is not learned; the first turn has none.
    assert_eq!(learned, "one<|im_end|>\n|hm two\n</think>\n\ntwo<|im_end|>\n");

    let (dataset, _) = load(&[two_turns()], MOVING, |_| {}).unwrap();
    assert_eq!(texts_of(&dataset, 0), ("<s>[a b]one</s>[S c]two</s>".into(), "one</s>|two</s>".into()));
}

#[test]
fn what_cannot_be_told_apart_is_refused_by_name() {
    // Only the last answer is closed, and not by itself.
    let odd = "{% for message in messages %}{{ message.content[::-1] }}/{% endfor %}{{ messages | length }}";
    let error = load(&[two_turns()], odd, |_| {}).unwrap_err().to_string();
    for words in ["rows.jsonl: row 0", "message 2", "loss_on last", "loss_on all"] {
        assert!(error.contains(words), "{error}");
    }
    assert!(load(&[two_turns()], odd, |it| it.loss_on = Some(LossOn::All)).is_ok());
}

#[test]
fn every_spelling_of_a_conversation_gives_the_same_tokens() {
    let turn = |from: &str, value: &str| json!({ "from": from, "value": value });
    let expected = load(&[two_turns()], CHATML, |_| {}).unwrap();
    let plain = two_turns()["messages"].clone();
    let part = |text: &str| json!([{ "type": "text", "text": text }]);
    for row in [
        json!({ "conversations": [turn("system", "S"), turn("human", "a b"), turn("gpt", "one"), turn("human", "c"), turn("gpt", "two")] }),
        json!({ "system": "S", "conversations": [turn("human", "a b"), turn("gpt", "one"), turn("human", "c"), turn("gpt", "two")] }),
        json!({ "messages": plain, "text": "not this", "tools": null }),
        json!({ "messages": [{ "role": "system", "content": part("S") }, plain[1], plain[2], { "role": "user", "content": part("c"), "name": null }, plain[4]] }),
    ] {
        assert_eq!(load(std::slice::from_ref(&row), CHATML, |_| {}).unwrap(), expected, "{row}");
    }
    let as_text = json!({ "messages": plain.to_string() });
    let chat = |it: &mut DataConfig| {
        let found = [halfbyte_data::Column { name: "messages".into(), kind: "string".into() }];
        it.columns = Columns::choose(&found, &ColumnNames::default(), Some(Layout::Chat)).unwrap().columns;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, &[as_text]);
    let mut config = DataConfig { template: Some(template(CHATML)), ..config(512) };
    chat(&mut config);
    assert_eq!(
        Dataset::load(&path, &chat_tokenizer(), &config).unwrap(),
        expected,
        "a list that a table holds as text"
    );
}

#[test]
fn prompts_and_completions_may_be_texts_or_messages() {
    let text = json!({ "prompt": "the good", "completion": " the" });
    let (dataset, report) = load(std::slice::from_ref(&text), CHATML, |_| {}).unwrap();
    assert_eq!(
        texts_of(&dataset, 0),
        ("the good the</s>".into(), " the</s>".into()),
        "put together as they are, and closed"
    );
    assert_eq!(report.unended, 0);
    let (all, _) = load(&[text], CHATML, |it| it.loss_on = Some(LossOn::All)).unwrap();
    assert_eq!(texts_of(&all, 0).1, " good the</s>");

    let messages = json!({ "prompt": [says("user", "a"), says("assistant", "b"), says("user", "c")],
                           "completion": [says("assistant", "d"), says("user", "e"), says("assistant", "f")] });
    let learned =
        |loss_on| texts_of(&load(std::slice::from_ref(&messages), CHATML, |it| it.loss_on = loss_on).unwrap().0, 0).1;
    assert_eq!(learned(None), "d<|im_end|>\n|f<|im_end|>\n", "what the assistant says in the prompt is not learned");
    assert_eq!(
        learned(Some(LossOn::Completion)),
        "d<|im_end|>\n<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\nf<|im_end|>\n"
    );
    let mixed = json!({ "prompt": [says("user", "a")], "completion": "b" });
    let error = load(&[mixed], CHATML, |_| {}).unwrap_err().to_string();
    assert!(error.contains("row 0") && error.contains("either both texts or both messages"), "{error}");
}

#[test]
fn a_model_without_a_template_gets_the_layout_of_instructions() {
    let row = json!({ "messages": [says("user", "Say it"), says("assistant", "the good")] });
    let (chat, _) = load(&[row], INSTRUCTION, |_| {}).unwrap();
    let row = json!({ "instruction": "Say it", "output": "the good" });
    let (instruction, _) = load(&[row], INSTRUCTION, |_| {}).unwrap();
    assert_eq!(chat, instruction, "of one turn it is the very same");
    let (turns, report) = load(&[two_turns()], INSTRUCTION, |_| {}).unwrap();
    let expected =
        "S\n\n### Instruction:\na b\n\n### Response:\none</s>\n\n### Instruction:\nc\n\n### Response:\ntwo</s>";
    assert_eq!(texts_of(&turns, 0), (expected.into(), "one</s>|two</s>".into()));
    assert_eq!(report.unended, 0);
}

#[test]
fn a_template_s_refusal_names_row_line_and_reason() {
    let strict = "{% for message in messages %}\n{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\n\
                  {{ raise_exception('roles must alternate') }}\n{% endif %}{{ message.content }}{% endfor %}";
    let good = json!({ "messages": [says("user", "a"), says("assistant", "b")] });
    let bad = json!({ "messages": [says("user", "a"), says("user", "b")] });
    let error = load(&[good.clone(), bad], strict, |_| {}).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Template { line: Some(3), .. }), "{text}");
    for words in ["rows.jsonl: row 1", "a template, line 3", "roles must alternate"] {
        assert!(text.contains(words), "{text}");
    }
    let broken = ChatTemplate::new("a\n{% if %}".into(), "its file", &chat_tokenizer()).unwrap_err().to_string();
    assert!(broken.contains("its file, line 2"), "{broken}");
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(load(&[good], endless, |_| {}).unwrap_err().to_string().contains("fuel"));
}

#[test]
fn rows_that_hold_no_conversation_are_named_or_counted() {
    let good = two_turns();
    let calls = json!({ "messages": [says("user", "a"), { "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": "{no" } }] }] });
    for (row, words) in [
        (json!({ "messages": [{ "who": "a" }] }), "no role"),
        (json!({ "messages": [3] }), "number where an object"),
        (calls, "no JSON"),
        (json!({ "messages": "plain" }), "no list of messages"),
    ] {
        let error = load(&[good.clone(), row], CHATML, |_| {}).unwrap_err().to_string();
        assert!(error.contains("row 1") && error.contains(words), "{error}");
    }
    let error = load(&[good.clone(), json!({ "messages": 7 })], CHATML, |_| {}).unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("\"messages\" holds number where text or a list"), "{error}");
    let (_, report) = load(
        &[
            good.clone(),
            json!({ "messages": [] }),
            json!({ "messages": null }),
            json!({ "messages": [says("user", "alone")] }),
        ],
        CHATML,
        |_| {},
    )
    .unwrap();
    assert_eq!((report.rows_used, report.empty, report.null, report.untrained), (1, 1, 1, 1));
    let none = load(&[good], CHATML, |it| it.template = None).unwrap_err();
    assert!(matches!(none, Error::NoTemplate));
}

#[test]
fn an_answer_that_nothing_closes_is_counted() {
    let open = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    let (_, report) = load(&[two_turns()], open, |_| {}).unwrap();
    assert_eq!((report.rows_used, report.unended, report.doubtful()), (1, 1, 1));
    assert!(report.warnings()[0].contains("no special token closes"), "{:?}", report.warnings());
    let twice =
        "{{ bos_token }}{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";
    assert_eq!(load(&[two_turns()], twice, |_| {}).unwrap().1.doubled_bos, 1);
}

#[test]
fn rows_that_are_too_long_are_cut_dropped_split_or_refused() {
    let texts = [Some("abcdefghij".to_owned()), Some("abc".into())];
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.jsonl");
    write_jsonl(&path, &[("text", &texts)]);
    let with = |excess| Dataset::load(&path, &tokenizer(), &DataConfig { excess, ..config(4) });
    let lengths = |excess| {
        let (dataset, report) = with(excess).unwrap();
        assert_eq!(report.rows_read, report.rows_used + report.dropped);
        (dataset.rows().map(|it| it.ids.len()).collect::<Vec<_>>(), report.truncated + report.dropped + report.split)
    };
    assert_eq!(lengths(Excess::Truncate), (vec![4, 3], 1));
    assert_eq!(lengths(Excess::Drop), (vec![3], 1));
    assert_eq!(lengths(Excess::Split), (vec![4, 4, 2, 3], 1));
    let error = with(Excess::Raise).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: row 0") && error.contains("10 tokens") && error.contains("may have 4"), "{error}");
    let whole = tokenizer().encode("abcdefghij").unwrap();
    let split = with(Excess::Split).unwrap().0;
    assert_eq!(split.rows().take(3).flat_map(|it| it.ids.to_vec()).collect::<Vec<_>>(), whole);
}

#[test]
fn columns_are_chosen_by_name() {
    let of = |names: &[&str], given: &str, layout: Option<Layout>| {
        let columns: Vec<_> = names
            .iter()
            .map(|it| halfbyte_data::Column {
                name: it.trim_end_matches("[]").into(),
                kind: if it.ends_with("[]") { "array" } else { "string" }.into(),
            })
            .collect();
        Columns::choose(&columns, &ColumnNames::parse(given).unwrap(), layout)
            .map(|it| (it.columns.to_string(), it.notes.len()))
    };
    let found = |names: &[&str], given: &str, layout| of(names, given, layout).unwrap();
    let one = |text: &str| (text.to_owned(), 0);
    assert_eq!(found(&["text"], "", None), one("column text"));
    assert_eq!(found(&["instruction", "input", "output"], "", None), one("columns instruction, input, output"));
    assert_eq!(
        found(&["instruction", "context", "response", "category"], "", None),
        one("columns instruction, context, response")
    );
    assert_eq!(found(&["question", "answer"], "", None), one("columns question, answer"));
    assert_eq!(found(&["prompt", "response"], "", None), one("columns prompt, response"));
    assert_eq!(found(&["prompt", "completion"], "", None), one("columns prompt, completion"));
    assert_eq!(found(&["id", "messages[]"], "", None), one("column messages"));
    assert_eq!(found(&["conversations[]", "system"], "", None), one("columns conversations, system"));
    assert_eq!(found(&["instruction", "output", "text"], "", None), ("column text".into(), 1));
    assert_eq!(found(&["messages[]", "prompt", "completion"], "", None).1, 1, "what else might be meant is told");
    assert_eq!(found(&["q", "a"], "prompt=q,completion=a", None), one("columns q, a"));
    assert_eq!(found(&["q", "a"], "prompt=q, completion=a", Some(Layout::Chat)), one("columns q, a"));
    assert_eq!(found(&["q", "a", "s"], "prompt=q,completion=a,system=s", None), one("columns q, a, s"));
    assert_eq!(found(&["q", "a"], "instruction=q,output=a", None), one("columns q, a"));
    assert_eq!(found(&["talk[]"], "messages=talk", None), one("column talk"));
    assert_eq!(found(&["instruction", "output"], "", Some(Layout::Chat)), one("columns instruction, output"));
    for (names, given, layout) in [
        (&["a", "b"][..], "", None),
        (&["text"], "text=text,prompt=b", None),
        (&["text"], "text=text", Some(Layout::Instruction)),
        (&["a"], "", Some(Layout::Chat)),
    ] {
        assert!(of(names, given, layout).is_err(), "{given}");
    }
    let unknown = of(&["a", "b"], "", None).unwrap_err().to_string();
    assert!(unknown.contains("a: string, b: string") && unknown.contains("prompt=question"), "{unknown}");
    for wrong in ["prompt", "who=a", "prompt=a,prompt=b", "prompt="] {
        assert!(ColumnNames::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_folder_s_template_is_found_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let find = || ChatTemplate::load(folder.path(), &chat_tokenizer()).unwrap();
    let said = |found: Option<ChatTemplate>| found.unwrap().render(&[says("user", "x")], None, false).unwrap();
    assert!(find().is_none());
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("chat_template.json", &json!({ "chat_template": "json" }).to_string());
    assert_eq!(said(find()), "json");
    let named = json!([{ "name": "default", "template": "default{{ eos_token }}" }, { "name": "tool_use", "template": "tools" }]);
    write("tokenizer_config.json", &json!({ "chat_template": named }).to_string());
    assert_eq!(said(find()), "default</s>");
    assert_eq!(find().unwrap().render(&[says("user", "x")], Some(&json!([{}])), false).unwrap(), "tools");
    write("chat_template.jinja", "jinja{{ extra }}");
    assert_eq!(
        said(find().map(|it| it.with_variables(json!({ "extra": "!" }).as_object().unwrap().clone()))),
        "jinja!"
    );
    write("chat_template.jinja", "{% if %}");
    let error = ChatTemplate::load(folder.path(), &chat_tokenizer()).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja, line 1"), "{error}");
}

#[test]
fn an_answer_ends_at_the_token_that_the_template_puts_behind_it() {
    let ends = |source: &str| template(source).end_ids(&chat_tokenizer()).unwrap();
    assert_eq!(ends(CHATML), [END]);
    assert_eq!(ends(INSTRUCTION), [EOS]);
    assert!(ends("{% for message in messages %}{{ message.content }}\n{% endfor %}").is_empty());
    let nameless = Tokenizer::from_json(tokenizer_json().to_string().as_bytes(), SpecialTokens::default()).unwrap();
    assert!(template(CHATML).end_ids(&nameless).unwrap().is_empty(), "cut into pieces, it is no token");
}

#[test]
fn a_tag_whose_end_shares_its_sign_with_its_beginning_is_no_tag() {
    for source in ["{%}", "{%} x %}", "a {%", "{% generation %}{%}"] {
        let template = ChatTemplate::new(source.to_owned(), "a template", &chat_tokenizer());
        assert!(template.is_err() || template.unwrap().render(&[], None, false).is_ok(), "{source}");
    }
}

/// Whatever a template does, it is written or refused: nothing of it is followed so deep that the program ends, or takes memory without
/// end.
#[test]
fn templates_without_end_are_refused() {
    let render = |source: String| {
        let made = ChatTemplate::new(source, "a template", &chat_tokenizer());
        made.and_then(|it| it.render(&[], None, false)).map_err(|it| it.to_string())
    };
    let kept =
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set KEEP %}{% endfor %}{{ ns.x | length }}";
    for keep in ["ns.x = [ns.x]", "ns.x = {'a': [1, ns.x]}", "ns.x = (ns.x, )", "ns.x = [ns.x] + [1]"] {
        let refused = render(kept.replace("KEEP", keep)).unwrap_err();
        assert!(refused.contains("each other more than 256 deep"), "{keep}: {refused}");
    }
    let rows = "{% set x = [x] %}".repeat(100_000);
    assert!(render(rows).unwrap_err().contains("each other more than 256 deep"));
    for chain in ["+1", " ~ 1", " or 1", ".a", "|trim", " if 1 else 1", "[0]"] {
        let refused = render(format!("{{{{ 1{} }}}}", chain.repeat(100_000))).unwrap_err();
        assert!(refused.contains("a tag of more than 2000"), "{chain}: {refused}");
        // As long as it may be, within the stack of any thread.
        let longest = 1900 / chain.split_inclusive(|it: char| !it.is_alphanumeric()).count() / 2;
        drop(render(format!("{{{{ 1{} }}}}", chain.repeat(longest))));
    }
    drop(render(format!("{{{{ {}1 }}}}", "not ".repeat(1900))));
    let branches = |count: usize| format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(count));
    assert!(render(branches(100_000)).unwrap_err().contains("more than 500 branches"));
    assert_eq!(render(branches(500)), Ok(String::new()));
    for wide in ["indent=3000000000", "indent=9223372036854775807", "separators=['a' * 10000000, ':']"] {
        let refused = render(format!("{{{{ [1, 2, 3, 4, 5, 6, 7, 8] | tojson({wide}) }}}}")).unwrap_err();
        assert!(refused.contains("fuel"), "{wide}: {refused}");
    }
    assert_eq!(
        render("{% set a = [1] %}{% set a = a + [[2]] %}{{ a }}{{ a | length }}".to_owned()),
        Ok("[1, [2]]2".into())
    );
}

#[test]
fn a_pair_of_which_one_is_missing_or_both_are_blank_is_no_row() {
    let (_, report) = load(
        &[
            json!({"prompt": "a b", "completion": " c"}),
            json!({"prompt": " ", "completion": "\n"}),
            json!({"prompt": null, "completion": "c"}),
            json!({"prompt": "a", "completion": null}),
        ],
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        |config| config.columns = Columns::Completion { prompt: "prompt".into(), completion: "completion".into() },
    )
    .unwrap();
    assert_eq!((report.rows_used, report.empty, report.null), (1, 1, 2));
}

#[test]
fn tools_are_a_list_that_holds_some_or_none() {
    let source = "{% if tools %}{{ tools|length }} tools {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
    let of = |tools: Value| {
        let row = json!({ "messages": [says("user", "a"), says("assistant", "b")], "tools": tools });
        load(&[row], source, |_| {}).map(|(dataset, _)| texts_of(&dataset, 0).0)
    };
    assert_eq!(of(json!([{ "name": "x" }, { "name": "y" }])).unwrap(), "2 tools ab");
    assert_eq!(of(json!("[{\"name\": \"x\"}]")).unwrap(), "1 tools ab");
    assert_eq!(of(json!([])).unwrap(), "ab");
    assert_eq!(of(json!("")).unwrap(), "ab");
    assert!(of(json!("{\"name\": \"x\"}")).unwrap_err().to_string().contains("holds no list of descriptions"));
}
