//! Which tokens are trained.

mod common;

use common::*;
use halfbyte_data::{
    Columns, DataConfig, Dataset, Error, IGNORE, LossOn, Report, SpecialTokens, Tokenizer, instruction_prompt,
};

fn some(text: &str) -> Option<String> {
    Some(text.into())
}

fn load_texts(texts: &[Option<String>], tokenizer: &Tokenizer, config: &DataConfig) -> (Dataset, Report) {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.jsonl");
    write_jsonl(&path, &[("text", texts)]);
    Dataset::load(&path, tokenizer, config).unwrap()
}

type InstructionRow<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

fn load_instructions(rows: &[InstructionRow<'_>], config: &DataConfig) -> halfbyte_data::Result<(Dataset, Report)> {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.parquet");
    let column = |pick: fn(&InstructionRow<'_>) -> Option<String>| rows.iter().map(pick).collect::<Vec<_>>();
    let instruction = column(|row| row.0.map(str::to_owned));
    let input = column(|row| row.1.map(str::to_owned));
    let output = column(|row| row.2.map(str::to_owned));
    write_parquet(&path, &[("output", &output), ("input", &input), ("instruction", &instruction)], 4);
    Dataset::load(&path, &tokenizer(), config)
}

/// Text of the tokens that some position of the row predicts.
fn trained_text(dataset: &Dataset, row: usize) -> String {
    let row = dataset.row(row);
    let ids: Vec<u32> = (0..row.ids.len()).map(|t| row.target(t)).filter(|&id| id != IGNORE).collect();
    tokenizer().decode(&ids, false).unwrap()
}

#[test]
fn text_is_trained_whole_and_gets_no_end_by_default() {
    let (dataset, report) = load_texts(&[some("the good")], &tokenizer(), &config(32));
    let ids = tokenizer().encode_plain("the good").unwrap();
    assert_eq!(ids.len(), 2, "the merges apply");
    assert_eq!(dataset.row(0).ids, ids);
    assert_eq!([dataset.row(0).target(0), dataset.row(0).target(1)], [ids[1], IGNORE]);
    assert_eq!((report.tokens, report.trained_tokens, report.unfinished), (2, 1, 0));
    let (closed, _) =
        load_texts(&[some("the good")], &tokenizer(), &DataConfig { append_eos: Some(true), ..config(32) });
    assert_eq!(closed.row(0).ids, [&ids[..], &[EOS]].concat());
    assert_eq!(closed.row(0).target(1), EOS);
}

#[test]
fn only_the_answer_and_its_end_are_trained() {
    let rows = [(Some("Say it"), Some("cheese"), Some("the good é")), (Some("Say it"), None, Some("\nthe"))];
    let (dataset, report) = load_instructions(&rows, &instruction_config(256)).unwrap();
    assert_eq!(trained_text(&dataset, 0), "the good é</s>");
    // The answer's own line end must be trained even if it merges with what stands before it.
    assert_eq!(trained_text(&dataset, 1), "\nthe</s>");
    let text = tokenizer().decode(dataset.row(0).ids, false).unwrap();
    assert_eq!(text, instruction_prompt("Say it", Some("cheese")) + "the good é</s>");
    let text = tokenizer().decode(dataset.row(1).ids, false).unwrap();
    assert_eq!(text, "### Instruction:\nSay it\n\n### Response:\n\nthe</s>");
    assert_eq!(report.rows_used, 2);
    let (all, _) =
        load_instructions(&rows, &DataConfig { loss_on: Some(LossOn::All), ..instruction_config(256) }).unwrap();
    assert_eq!(all.row(0).ids, dataset.row(0).ids);
    assert!((1..all.row(0).ids.len()).all(|t| all.row(0).trained(t)));
}

#[test]
fn the_prompt_of_generation_is_the_prompt_of_training() {
    let (dataset, _) =
        load_instructions(&[(Some("Name the good"), Some(" "), Some("the"))], &instruction_config(256)).unwrap();
    let prompt = tokenizer().encode_prompt(&instruction_prompt("Name the good", None)).unwrap();
    assert_eq!(dataset.row(0).ids[..prompt.len()], prompt);
    assert!(!dataset.row(0).trained(prompt.len() - 1) && dataset.row(0).trained(prompt.len()));
}

#[test]
fn rows_that_train_nothing_are_counted_not_swallowed() {
    let prompt = tokenizer().encode_plain(&instruction_prompt("x", None)).unwrap().len();
    let rows = [
        (Some("x"), None, Some("the")),           // fits with its end
        (Some("x"), None, Some("the good good")), // cut before its end
        (Some("xxxxx"), None, Some("the good")),  // the whole answer is cut off
        (None, None, Some("the")),
        (Some("x"), Some("y"), None),
        (Some("x"), None, Some("  ")),
    ];
    let (dataset, report) = load_instructions(&rows, &instruction_config(prompt + 2)).unwrap();
    assert_eq!(dataset.len(), 2);
    let found = (report.rows_used, report.null, report.empty, report.untrained, report.truncated, report.unfinished);
    assert_eq!(found, (2, 2, 1, 1, 2, 1));
    assert_eq!(report.rows_read, report.rows_used + report.null + report.empty + report.untrained);
    assert_eq!(report.warnings().len(), 4, "{:?}", report.warnings());
    let tokens = format!("{} tokens, {} trained", dataset.tokens(), report.trained_tokens);
    assert_eq!(
        report.to_string(),
        format!(
            "6 rows read, 2 used, 2 null, 1 empty, 1 without a trained token, 2 truncated, 1 cut before their end; {tokens}"
        )
    );
    let nothing = load_instructions(&rows[2..], &instruction_config(prompt)).unwrap_err();
    assert!(matches!(&nothing, Error::NoUsableRows { report, .. } if report.rows_read == 4), "{nothing}");
    assert!(nothing.to_string().contains("no usable rows: 4 rows read, 0 used, 2 null"), "{nothing}");
}

#[test]
fn completions_need_a_text_on_one_side() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.jsonl");
    let prompts = [some("good "), some(""), some("the good"), some(" "), None, some("x")];
    let answers = [some("the good"), some("the good"), some(""), some("\n"), some("the"), None];
    write_jsonl(&path, &[("prompt", &prompts), ("completion", &answers)]);
    let columns = Columns::Completion { prompt: "prompt".into(), completion: "completion".into() };
    let config = DataConfig { columns, append_eos: Some(true), ..config(32) };
    let (dataset, report) = Dataset::load(&path, &tokenizer(), &config).unwrap();
    assert_eq!((report.rows_read, report.rows_used, report.empty, report.null), (6, 3, 1, 2));
    let trained: Vec<String> = (0..3).map(|row| trained_text(&dataset, row)).collect();
    assert_eq!(trained, [" the good</s>", " good</s>", "</s>"]);
}

#[test]
fn a_single_token_predicts_nothing() {
    let (dataset, report) = load_texts(&[some("x"), some("xy")], &tokenizer(), &config(8));
    assert_eq!((dataset.len(), report.untrained, report.trained_tokens), (1, 1, 1));
}

#[test]
fn truncation_keeps_the_beginning_and_counts_the_rest() {
    let (dataset, report) = load_texts(&[some("abcdefgh"), some("abc")], &tokenizer(), &config(5));
    assert_eq!(dataset.row(0).ids, tokenizer().encode_plain("abcde").unwrap());
    assert_eq!((report.truncated, report.tokens_cut, report.tokens), (1, 3, 8));
    assert_eq!(report.unfinished, 0, "no end was asked for");
}

fn surrounded(special: SpecialTokens) -> Tokenizer {
    let mut json = tokenizer_json();
    json["post_processor"] = surrounding();
    Tokenizer::from_json(json.to_string().as_bytes(), special).unwrap()
}

#[test]
fn a_doubled_beginning_is_reported_and_an_end_is_not_doubled() {
    let config = DataConfig { append_eos: Some(true), ..config(32) };
    let (dataset, report) = load_texts(&[some("<s>ab"), some("ab")], &surrounded(special()), &config);
    assert_eq!(report.doubled_bos, 1);
    assert_eq!(dataset.row(0).ids[..2], [BOS, BOS], "the row is kept as it is");
    let plain = tokenizer().encode_plain("ab").unwrap();
    assert_eq!(dataset.row(1).ids, [&[BOS], &plain[..], &[EOS]].concat());
    assert!(report.warnings()[0].contains("twice"));
}

#[test]
fn what_surrounds_a_text_is_what_the_post_processor_says() {
    let plain = tokenizer().encode_plain("ab").unwrap();
    let nameless = SpecialTokens { bos: None, ..special() };
    for special in [special(), nameless] {
        assert_eq!(surrounded(special.clone()).encode("ab").unwrap(), [&[BOS], &plain[..], &[EOS]].concat());
        assert_eq!(surrounded(special).encode_prompt("ab").unwrap(), [&[BOS], &plain[..]].concat());
    }
}

#[test]
fn an_end_that_the_tokenizer_lacks_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.jsonl");
    write_jsonl(&path, &[("text", &[some("ab")])]);
    let bare = Tokenizer::from_json(tokenizer_json().to_string().as_bytes(), SpecialTokens::default()).unwrap();
    assert!(Dataset::load(&path, &bare, &config(8)).is_ok(), "nothing is appended, and nothing is ever padded");
    let closing = DataConfig { append_eos: Some(true), ..config(8) };
    let error = Dataset::load(&path, &bare, &closing).unwrap_err().to_string();
    assert!(error.contains("no eos token"), "{error}");
}

#[test]
fn instruction_rows_may_do_without_an_input_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.jsonl");
    write_jsonl(&path, &[("question", &[some("x")]), ("answer", &[some("the")])]);
    let columns = Columns::Instruction { instruction: "question".into(), input: None, output: "answer".into() };
    let (dataset, _) = Dataset::load(&path, &tokenizer(), &DataConfig { columns, ..config(99) }).unwrap();
    assert_eq!(trained_text(&dataset, 0), "the</s>");
}
