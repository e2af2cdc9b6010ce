//! What nobody means to give: pipes, names that are no text, settings that no machine has room for. Each gets a sentence.

use e2e::{Outcome, TinyModel, Work, halfbyte, run, run_within, write_jsonl};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn model(work: &Work, name: &str) -> PathBuf {
    let path = work.path(name);
    TinyModel::llama().write(&path);
    path
}

#[cfg(unix)]
#[test]
fn pipes_are_not_waited_for() {
    let work = Work::new();
    let pipe = |path: &Path| {
        let _ = fs::remove_file(path);
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for file in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        let folder = model(&work, file);
        pipe(&folder.join(file));
        work.finetune().path("--model", &folder).run().user_error(&[file, "file"]);
    }
    let data = work.path("pipe.jsonl");
    pipe(&data);
    work.finetune().path("--data", &data).run().user_error(&["pipe.jsonl", "a pipe"]);
    let adapter = work.finetune().done();
    for file in ["adapter_config.json", "adapter_model.safetensors", "halfbyte_base.json"] {
        let whole = fs::read(adapter.join(file)).unwrap();
        pipe(&adapter.join(file));
        work.eval(&work.model(&TinyModel::llama()), Some(&adapter), "").user_error(&[file, "a pipe"]);
        fs::remove_file(adapter.join(file)).unwrap();
        fs::write(adapter.join(file), whole).unwrap();
    }
    // What is named alone, and what lies beside a model and is copied or looked at in passing.
    let named = work.path("named");
    pipe(&named);
    work.finetune().path("--config", &named).run().user_error(&["named", "a pipe"]);
    let base = model(&work, "base");
    let generate = ["generate", "--prompt", "cat", "--chat", "--max-new-tokens", "2", "--model"].map(OsString::from);
    let flags = [base.clone().into(), "--chat-template".into(), named.into_os_string()];
    run(generate.into_iter().chain(flags)).user_error(&["--chat-template", "a pipe"]);
    pipe(&base.join("special_tokens_map.json"));
    let eval = ["eval", "--model"].map(OsString::from).into_iter();
    let mut line = halfbyte();
    line.args(eval.chain([base.into(), "--data".into(), work.rows().into()])).env("HALFBYTE_CACHE", work.path("cache"));
    Outcome::of(&mut line).user_error(&["special_tokens_map.json"]);
    pipe(&adapter.join("tokenizer.json"));
    work.eval(&work.model(&TinyModel::llama()), Some(&adapter), "").success();
    // What a chat is to be written to: it goes on.
    let kept = work.path("kept.jsonl");
    pipe(&kept);
    let mut chat = halfbyte();
    chat.args(["chat", "--max-new-tokens", "2", "--model"]).arg(work.model(&TinyModel::llama()));
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = format!("the cat\n/save {}\nthe dog\n", kept.display());
    chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let outcome = Outcome::new("chat".into(), &chat.wait_with_output().unwrap()).ends(0, &["kept.jsonl", "a pipe"]);
    assert_eq!(outcome.stdout.lines().count(), 2, "{outcome}");
}

#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_no_text_are_refused_before_anything_is_loaded() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let work = Work::new();
    let odd = work.path("").join(OsStr::from_bytes(b"run\xff"));
    for flag in ["--output", "--model", "--data", "--eval-data", "--init-adapter"] {
        work.finetune().path(flag, &odd).run().user_error(&[flag, "not UTF-8"]);
    }
    assert!(!odd.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_are_used_where_they_name_a_folder_and_refused_in_one_sentence_elsewhere() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let work = Work::new();
    let (model, odd) = (work.model(&TinyModel::llama()), work.path("").join(OsStr::from_bytes(b"od=d\xff")));
    let flags = ["--model".into(), model.clone().into_os_string(), "--adapter".into(), odd.clone().into_os_string()];
    let generate = ["generate", "--prompt", "cat", "--max-new-tokens", "2"].map(OsString::from).to_vec();
    let merge = ["merge", "--output"].map(OsString::from).into_iter().chain([work.path("merged").into()]).collect();
    let eval: Vec<OsString> = vec!["eval".into(), "--data".into(), work.rows().into()];
    for command in [&generate, &merge, &eval] {
        run(command.iter().chain(&flags)).user_error(&["od=d\u{fffd}", "adapter"]);
    }
    let adapter = work.finetune().done();
    let loss = work.loss(&model, Some(&adapter), "");
    fs::rename(adapter, &odd).unwrap();
    assert_eq!(work.loss(&model, Some(&odd), ""), loss);
    for command in [generate, merge] {
        run(command.iter().chain(&flags)).success();
    }
    // No name on the hub has such letters, so that nobody is asked.
    let nowhere = |more: &[&OsStr]| {
        let mut pull = halfbyte();
        pull.arg("pull").args(more).env("HF_ENDPOINT", "http://127.0.0.1:9");
        Outcome::of(&mut pull)
    };
    nowhere(&[OsStr::from_bytes(b"o/d\xff")]).user_error(&["o/d\u{fffd}", "expected ORG/NAME"]);
    nowhere(&["--data".as_ref(), OsStr::from_bytes(b"o/d\xff:train")]).user_error(&["o/d\u{fffd}", "expected ORG/SET"]);
}

/// What nobody planned: a row that is longer than any may be, which is found out by reading it.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_is_not_given_is_a_failure_and_no_abort() {
    let work = Work::new();
    let (model, data) = (work.model(&TinyModel::llama()), work.path("long.jsonl"));
    fs::write(&data, json!({ "text": "the cat ".repeat(9 << 20) }).to_string()).unwrap();
    let args = ["eval", "--threads", "1", "--model"].map(OsString::from).into_iter();
    let args: Vec<OsString> = args.chain([model.into(), "--data".into(), data.into()]).collect();
    let mut failed = 0;
    // From what lets the program begin to what suffices to refuse the row.
    for kib in (60_000..=240_000).step_by(30_000) {
        let outcome = run_within(kib, &args);
        match outcome.code {
            Some(127) if failed == 0 => {}
            Some(1) => {
                failed += 1;
                outcome.ends(1, &["error: the system gave no more memory"]);
            }
            _ => drop(outcome.user_error(&["longer than 64 MiB"])),
        }
    }
    assert!(failed > 0, "no limit was in between");
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_does_not_fit_is_refused_and_not_aborted() {
    let work = Work::new();
    let outcome = work.finetune().flags("--rank 65536 --threads 1").within(1_000_000);
    outcome.user_error(&["of memory are free", "this run needs"]);
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_cannot_be_started_are_refused() {
    let work = Work::new();
    work.finetune().flags("--threads 1000").within(1_000_000).user_error(&["threads", "--threads"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_long_line_takes_memory_for_what_is_wanted_of_it() {
    let work = Work::new();
    let data = work.path("long.jsonl");
    write_jsonl(&data, &[Some("the cat sat on the mat"), Some(&"the dog ran over the hill ".repeat(800_000))]);
    let run = work.finetune().path("--data", &data).flags("--threads 1 --max-length 12");
    let outcome = run.within(1_000_000).success();
    assert!(outcome.stderr.contains("1 truncated"), "{outcome}");
}

#[test]
fn tokenizers_on_which_the_reader_gives_up_are_refused_in_one_sentence() {
    let work = Work::new();
    let text = fs::read_to_string(model(&work, "whole").join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    tokenizer["model"] = json!({
        "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": [["a", "b"]],
        "continuing_subword_prefix": "xxxxxxxxxxxx",
    });
    let prefix = tokenizer.to_string();
    tokenizer["decoder"] = json!("@@");
    let deep = tokenizer.to_string().replace("\"@@\"", &("[".repeat(5000) + &"]".repeat(5000)));
    for (name, text) in [("prefix", prefix), ("deep", deep)] {
        let folder = model(&work, name);
        fs::write(folder.join("tokenizer.json"), text).unwrap();
        // That nothing panics is asserted of every outcome.
        work.eval(&folder, None, "").user_error(&["tokenizer.json", "not a usable tokenizer"]);
    }
}

#[test]
fn a_cause_is_said_once() {
    let work = Work::new();
    let missing = work.path("missing");
    let outcome = work.eval(&work.model(&TinyModel::llama()), Some(&missing), "").user_error(&["missing"]);
    assert_eq!(outcome.stderr.matches("no such folder").count(), 1, "{outcome}");
    let outcome = run(["merge".as_ref(), "--model".as_ref(), missing.as_os_str(), "--adapter".as_ref()]
        .into_iter()
        .chain([missing.as_os_str(), "--output".as_ref(), work.path("merged").as_os_str()]));
    outcome.user_error(&["missing", "not a folder"]);
}
