//! Data in the files that people have: whatever the format, the same rows train the same adapter.

use e2e::{ROWS, Work, run, write_jsonl, write_parquet};
use serde_json::json;
use std::{ffi::OsString, fs, path::PathBuf};

#[test]
fn files_of_every_format_and_number_train_the_same_adapter() {
    let work = Work::new();
    let adapter = |names: &[&str]| {
        let paths: Vec<PathBuf> = names.iter().map(|it| work.path(it)).collect();
        let run = work.finetune().without(&["--data"]).output(&work.path("run")).flags("--overwrite --max-steps 2");
        let mut args = run.args();
        args.push("--data".into());
        args.extend(paths.into_iter().map(OsString::from));
        e2e::run(args).success();
        run.adapter_bytes()
    };
    write_jsonl(&work.path("rows.jsonl"), &ROWS.map(Some));
    let expected = adapter(&["rows.jsonl"]);
    let rows: Vec<_> = ROWS.iter().map(|it| json!({ "text": it })).collect();
    fs::write(work.path("list.json"), format!("{:#}", json!(rows))).unwrap();
    fs::write(work.path("rows.csv"), format!("text\n{}\n", ROWS.map(|it| format!("\"{it}\"")).join("\n"))).unwrap();
    fs::write(work.path("rows.txt"), ROWS.join("\n")).unwrap();
    for name in ["list.json", "rows.csv", "rows.txt"] {
        assert_eq!(adapter(&[name]), expected, "{name}");
    }
    fs::create_dir(work.path("set")).unwrap();
    let (front, back) = ROWS.split_at(3);
    write_parquet(
        &work.path("set/train-00000-of-00002.parquet"),
        &front.iter().map(|it| Some(*it)).collect::<Vec<_>>(),
    );
    write_parquet(&work.path("set/train-00001-of-00002.parquet"), &back.iter().map(|it| Some(*it)).collect::<Vec<_>>());
    write_parquet(&work.path("set/test-00000-of-00001.parquet"), &[Some("the cat sat")]);
    for names in [
        &["set"][..],
        &["set/train-*.parquet"],
        &["set/train-00000-of-00002.parquet", "set/train-00001-of-00002.parquet"],
    ] {
        assert_eq!(adapter(names), expected, "{names:?}");
    }
    // Of the same folder, what is held out.
    let model = work.model(&e2e::TinyModel::llama());
    let args: Vec<OsString> =
        vec!["eval".into(), "--json".into(), "--model".into(), model.into(), "--data".into(), work.path("set").into()];
    assert_eq!(run(args).json()["rows"], 1);
}

#[test]
fn several_files_stand_in_a_file_of_settings() {
    let work = Work::new();
    write_jsonl(&work.path("a.jsonl"), &ROWS.map(Some));
    let flags = work.finetune().without(&["--data"]).flags("--max-steps 1");
    let config = work.path("run.toml");
    let a = work.path("a.jsonl").display().to_string();
    fs::write(&config, format!("data = [{a:?}, {a:?}]\n")).unwrap();
    flags.clone().path("--config", &config).done();
    let used = fs::read_to_string(work.path("run/config.toml")).unwrap();
    let listed: toml::Table = used.parse().unwrap();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2), "{used}");
    assert_eq!(flags.summary()["data"]["rows_read"], 16);
    // And one is a text.
    fs::write(&config, format!("data = {a:?}\n")).unwrap();
    flags.clone().path("--config", &config).flags("--overwrite").done();
    let used = fs::read_to_string(work.path("run/config.toml")).unwrap();
    assert!(used.contains(&format!("data = {a:?}")), "{used}");
}
