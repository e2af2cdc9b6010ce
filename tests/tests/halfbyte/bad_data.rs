//! Data files that are not what they should be.

use e2e::{Outcome, ROWS, Work, write_jsonl, write_parquet};
use std::{fs, path::Path};

/// Fine-tunes on the file and expects a mistake that leaves no output.
#[track_caller]
fn refused(work: &Work, data: &Path, flags: &str, parts: &[&str]) -> Outcome {
    let outcome = work.finetune().path("--data", data).flags(flags).run().user_error(parts);
    assert!(!work.path("run").exists(), "nothing was written");
    outcome
}

#[test]
fn a_missing_file() {
    let work = Work::new();
    refused(&work, &work.path("nowhere.parquet"), "", &["nowhere.parquet", "no such file"]);
    let held_out = work.finetune().path("--eval-data", work.path("elsewhere.parquet")).run();
    held_out.user_error(&["elsewhere.parquet", "no such file"]);
}

#[test]
fn a_folder_in_the_place_of_a_file() {
    let work = Work::new();
    let folder = work.path("data.parquet");
    fs::create_dir(&folder).unwrap();
    refused(&work, &folder, "", &["data.parquet"]);
}

#[test]
fn corrupt_parquet() {
    let work = Work::new();
    let data = work.path("rows.parquet");
    write_parquet(&data, &ROWS.map(Some));
    let bytes = fs::read(&data).unwrap();
    for len in [bytes.len() - 9, bytes.len() / 2, 3] {
        fs::write(&data, &bytes[..len]).unwrap();
        refused(&work, &data, "", &["rows.parquet"]);
    }
    fs::write(&data, &bytes[..bytes.len() / 2]).unwrap();
    refused(&work, &data, "", &["rows.parquet", "corrupt parquet"]);
}

#[test]
fn bit_flipped_parquet_gives_rows_or_a_sentence() {
    let work = Work::new();
    let data = work.path("rows.parquet");
    write_parquet(&data, &ROWS.map(Some));
    let bytes = fs::read(&data).unwrap();
    let mut refusals = 0;
    for at in (0..bytes.len()).step_by(bytes.len() / 24) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&data, flipped).unwrap();
        let outcome = work.finetune().path("--data", &data).flags("--max-steps 1 --overwrite").run();
        assert!(matches!(outcome.code, Some(0 | 2)), "byte {at}: {outcome}");
        assert!(outcome.code == Some(0) || outcome.stderr.contains("rows.parquet"), "byte {at}: {outcome}");
        refusals += i32::from(outcome.code == Some(2));
    }
    assert!(refusals > 3, "some of the damage is found: {refusals}");
}

#[test]
fn a_column_that_is_not_there() {
    let work = Work::new();
    let data = work.path("rows.parquet");
    write_parquet(&data, &ROWS.map(Some));
    refused(&work, &data, "--text-column review", &["rows.parquet", "\"review\"", "id", "text"]);
    let lines = work.path("other.jsonl");
    fs::write(&lines, "{\"title\": \"the cat\", \"body\": \"sat\"}\n").unwrap();
    refused(&work, &lines, "", &["other.jsonl", "\"text\"", "title", "body"]);
}

#[test]
fn a_column_that_holds_no_text() {
    let work = Work::new();
    let data = work.path("rows.parquet");
    write_parquet(&data, &ROWS.map(Some));
    refused(&work, &data, "--text-column id", &["rows.parquet", "\"id\"", "text is expected"]);
}

#[test]
fn no_usable_rows() {
    let work = Work::new();
    let data = work.path("rows.parquet");
    write_parquet(&data, &[None, Some(""), Some(" "), Some("cat"), None]);
    refused(&work, &data, "", &["rows.parquet", "no usable rows", "5 rows read", "2 null", "2 empty"]);
    let empty = work.path("empty.jsonl");
    fs::write(&empty, "").unwrap();
    refused(&work, &empty, "", &["empty.jsonl"]);
}

#[test]
fn rows_beyond_the_end() {
    let work = Work::new();
    let data = work.rows();
    refused(&work, &data, "--rows 4..400", &["rows.jsonl", "4..400", "8 rows"]);
    refused(&work, &data, "--rows 5", &["0..1000"]);
}

#[test]
fn a_line_that_is_not_json() {
    let work = Work::new();
    let data = work.path("rows.jsonl");
    write_jsonl(&data, &[Some(ROWS[0]), Some(ROWS[1])]);
    let text = fs::read_to_string(&data).unwrap() + "{\"text\": \"the cat\n";
    fs::write(&data, text).unwrap();
    // `rows()` would write the file anew.
    let run = e2e::Finetune::new(&work.model(&e2e::TinyModel::llama()), &data, &work.path("run"));
    run.run().user_error(&["rows.jsonl", "line 3", "JSON object"]);
}

#[test]
fn a_file_of_another_kind() {
    let work = Work::new();
    let data = work.path("rows.docx");
    fs::write(&data, "PK\u{3}\u{4}").unwrap();
    refused(&work, &data, "", &["rows.docx", "zip", "parquet", ".jsonl", ".csv"]);
}

#[test]
fn rows_longer_than_the_model_has_positions_for() {
    let work = Work::new();
    let data = work.path("long.jsonl");
    write_jsonl(&data, &[Some(&*"the cat ".repeat(40))]);
    refused(&work, &data, "--max-length 512", &["80 tokens", "64", "--max-length 64"]);
    refused(&work, &data, "--max-length 1", &["max_length"]);
    work.finetune().path("--data", &data).flags("--max-length 64 --max-steps 1").done();
}
