//! `generate` over many prompts: of flags and of files, some together, in order, into a file that can be gone on from.

use crate::cuda::on_gpu;
use e2e::{Outcome, TinyModel, Work, run, write_parquet};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

const PROMPTS: [&str; 7] = [
    "the cat",
    "a big dog ran over the hill and slept all day in the old tree and then the bird flew",
    "the fish swam in",
    "a",
    "the red bird",
    "all day the old cat sat on the mat and the dog ran under the tree",
    "then",
];

fn args(model: &Path, flags: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["generate".into(), "--model".into(), model.into()];
    args.extend("--compute-dtype f32 --max-new-tokens 9".split_whitespace().map(OsString::from));
    args.extend(flags.split_whitespace().map(OsString::from));
    args
}

fn of_file(model: &Path, data: &Path, flags: &str) -> Outcome {
    let mut all = args(model, flags);
    all.extend(["--prompts".into(), data.into()]);
    run(all)
}

fn of_flags(model: &Path, prompts: &[&str], flags: &str) -> Outcome {
    let mut all = args(model, flags);
    prompts.iter().for_each(|it| all.extend(["--prompt".into(), it.into()]));
    run(all)
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|it| serde_json::from_str(it).unwrap()).collect()
}

fn written(work: &Work, name: &str, text: &str) -> PathBuf {
    let path = work.path(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn each_text_is_as_alone_and_they_come_in_order() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let alone: Vec<String> = PROMPTS.iter().map(|it| of_flags(&model, &[it], "").success().stdout).collect();
    let together = of_flags(&model, &PROMPTS, "").success();
    assert_eq!(together.stdout, alone.concat());
    assert!(together.stderr.contains("7 texts in") && together.stderr.contains("new tokens/s"), "{together}");
    let file = written(&work, "lines.txt", &PROMPTS.map(|it| format!("{it}\n")).concat());
    for flags in
        ["", "--batch-size 1", "--per-device-eval-batch-size 3", "--per_device_eval_batch_size 100 --threads 1"]
    {
        assert_eq!(of_file(&model, &file, flags).success().stdout, alone.concat(), "{flags}");
    }
    assert_eq!(of_file(&model, &file, "--rows 2..4").success().stdout, alone[2..4].concat());
    // Whichever texts are beside it and how many, a text is drawn by its number.
    let sampled = |flags: &str| of_file(&model, &file, &format!("--temperature 2 {flags}")).success().stdout;
    assert_eq!(sampled("--batch-size 2"), sampled("--batch-size 5"));
    assert_ne!(sampled(""), sampled("--seed 1"));
    // So parts that several machines make are those of the whole.
    let parts = ["--rows 0..3", "--rows 3..7"].map(|it| sampled(&format!("--json {it}")));
    assert_eq!(parts.concat(), sampled("--json"));
}

#[test]
fn rows_of_any_layout_are_asked_as_in_training() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let parquet = work.path("rows.parquet");
    write_parquet(&parquet, &PROMPTS.map(Some));
    let plain = of_flags(&model, &PROMPTS, "--json").success().stdout;
    assert_eq!(of_file(&model, &parquet, "--json").success().stdout, plain);
    let first: Value = serde_json::from_str(plain.lines().next().unwrap()).unwrap();
    assert_eq!((&first["row"], &first["prompt"], &first["prompt_tokens"]), (&json!(0), &json!("the cat"), &json!(2)));
    assert_eq!((&first["tokens"], &first["finish_reason"]), (&json!(9), &json!("length")));

    let asked = |text: &str, flags: &str| {
        let rows = written(&work, "rows.jsonl", text);
        let found = of_file(&model, &rows, &format!("--json {flags}")).success();
        serde_json::from_str::<Value>(found.stdout.lines().next().unwrap()).unwrap()
    };
    let prompt = |object: Value| object["prompt"].as_str().unwrap().to_owned();
    let task = json!({ "instruction": "the cat", "output": "sat" }).to_string();
    assert_eq!(prompt(asked(&task, "")), "### Instruction:\nthe cat\n\n### Response:\n");
    let flag = of_flags(&model, &["the cat"], "--layout instruction --json").json();
    assert_eq!(asked(&task, ""), flag, "the same from a flag");
    let talk =
        json!({ "messages": [{ "role": "user", "content": "the cat" }, { "role": "assistant", "content": "sat" }] });
    let chat = asked(&talk.to_string(), "--chat-template chatml");
    assert_eq!(prompt(chat.clone()), "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(chat, of_flags(&model, &["the cat"], "--chat --chat-template chatml --json").json());
    assert!(
        prompt(asked(&talk.to_string(), "--chat-template chatml --system dog")).starts_with("<|im_start|>system\ndog<")
    );
    assert_eq!(prompt(asked("{\"q\": \"the dog\", \"n\": 1}", "--text-column q")), "the dog");
    assert_eq!(prompt(asked("{\"q\": \"the dog\", \"n\": 1}", "--columns prompt=q")), "the dog");
}

#[test]
fn a_file_of_answers_is_gone_on_from_to_the_same_bytes() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let adapter = work.finetune().done();
    let file = written(&work, "lines.txt", &PROMPTS.map(|it| format!("{it}\n")).concat());
    let into = |name: &str, flags: &str| {
        let mut all = args(&model, &format!("--temperature 1 --batch-size 3 {flags}"));
        all.extend(["--prompts".into(), file.clone().into(), "--output".into(), work.path(name).into()]);
        for name in ["one", "two"] {
            let mut value = OsString::from(format!("{name}="));
            value.push(&adapter);
            all.extend(["--adapter".into(), value]);
        }
        run(all)
    };
    assert_eq!(into("all.jsonl", "").success().stdout, "", "all is in the file");
    let whole = fs::read_to_string(work.path("all.jsonl")).unwrap();
    let found = lines(&work.path("all.jsonl"));
    let keys: Vec<(u64, &str)> =
        found.iter().map(|it| (it["row"].as_u64().unwrap(), it["adapter"].as_str().unwrap())).collect();
    let rows = 0..PROMPTS.len() as u64;
    let expected: Vec<(u64, &str)> =
        ["one", "two"].into_iter().flat_map(|name| rows.clone().map(move |it| (it, name))).collect();
    assert_eq!(keys, expected);
    assert_eq!(found[3]["completion"], found[10]["completion"], "it is one adapter under two names");

    // As a command leaves it that is killed: after some lines, perhaps in the middle of one.
    for cut in [0, 1, whole.len() / 3, whole.find('\n').unwrap() + 1, whole.len() - 1, whole.len()] {
        fs::write(work.path("part.jsonl"), &whole[..cut]).unwrap();
        let outcome = into("part.jsonl", "--resume").success();
        assert_eq!(fs::read_to_string(work.path("part.jsonl")).unwrap(), whole, "cut at {cut}: {outcome}");
    }
    // What nobody of these prompts has begun is not what a killed command leaves, whether it ends with a line or not.
    for text in ["my only copy", "{\"a\": 1}", "{\"row\":1,\"adapter\":\"one\""] {
        fs::write(work.path("notes.txt"), text).unwrap();
        into("notes.txt", "--resume").user_error(&["notes.txt", "line 1", "these prompts"]);
        assert_eq!(fs::read_to_string(work.path("notes.txt")).unwrap(), text);
    }
    fs::write(work.path("part.jsonl"), whole.clone() + "more").unwrap();
    into("part.jsonl", "--resume").user_error(&["part.jsonl", "these prompts"]);
    let other = fs::File::options().append(true).open(work.path("all.jsonl")).unwrap();
    other.lock().unwrap();
    into("all.jsonl", "--resume").user_error(&["all.jsonl", "another command"]);
    drop(other);
    into("all.jsonl", "").user_error(&["all.jsonl", "--resume", "--overwrite"]);
    assert_eq!(fs::read_to_string(work.path("all.jsonl")).unwrap(), whole, "a refusal changes nothing");
    into("all.jsonl", "--rows 1..7 --resume").user_error(&["all.jsonl", "line 1", "these prompts"]);
    // Nor are continuations of two ways of making them mixed; how many go together is none.
    into("all.jsonl", "--top-p 0.9 --resume").user_error(&["line 1 was made with top_p 1.0, and now it is 0.9"]);
    let weights = adapter.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, [&bytes[..bytes.len() - 64], &[0; 64]].concat()).unwrap();
    into("all.jsonl", "--resume").user_error(&["line 1 was made with adapter_weights"]);
    fs::write(&weights, bytes).unwrap();
    into("all.jsonl", "--quant none --resume")
        .user_error(&["line 1 was made with base", "now it is \"loaded (quant none)\""]);
    // What cannot be continued replaces nothing, and prompts are not replaced by their continuations.
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let mut no_numbers = bytes.clone();
    no_numbers[bytes.len() / 2..].fill(0xff);
    fs::write(&weights, no_numbers).unwrap();
    into("all.jsonl", "--overwrite").user_error(&["NaN or infinite"]);
    fs::write(&weights, bytes).unwrap();
    assert_eq!(fs::read_to_string(work.path("all.jsonl")).unwrap(), whole);
    let prompts = fs::read_to_string(&file).unwrap();
    into(file.file_name().unwrap().to_str().unwrap(), "--overwrite").user_error(&["holds the prompts"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), prompts);
    into("all.jsonl", "--rows 0..2 --overwrite").success();
    assert_eq!(lines(&work.path("all.jsonl")).len(), 4);
    into("no/such/folder/all.jsonl", "").user_error(&["no/such/folder"]);
}

#[test]
fn what_cannot_be_continued_is_refused_by_its_row() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let ask = |text: &str, flags: &str| of_file(&model, &written(&work, "rows.jsonl", text), flags);
    let fine = "{\"prompt\": \"the\"}\n";
    ask(&format!("{fine}{{\"prompt\": null}}\n"), "").user_error(&["rows.jsonl: row 1", "prompt is null"]);
    ask(&format!("{fine}{{\"prompt\": \" \"}}\n"), "").user_error(&["rows.jsonl: row 1", "no text"]);
    ask(&format!("{fine}{{\"prompt\": \"{}\"}}\n", "the ".repeat(500)), "").user_error(&["row 1", "500 tokens"]);
    ask(&format!("{fine}[7]\n"), "").user_error(&["line 2"]);
    ask("{\"label\": 3}\n", "").user_error(&["rows.jsonl", "label"]);
    ask(fine, "--rows 5..9").user_error(&["rows"]);
    for flag in ["--system x", "--chat-template chatml", "--chat-template-kwargs {\"a\":1}"] {
        let name = flag.split(' ').next().unwrap();
        ask(fine, flag).user_error(&[name, "add --chat"]);
        ask(fine, &format!("{flag} --layout completion")).user_error(&[name, "add --chat"]);
        of_flags(&model, &["the"], flag).user_error(&[name, "add --chat"]);
        of_flags(&model, &["the"], &format!("{flag} --layout instruction")).user_error(&[name, "add --chat"]);
    }
    ask(fine, "--batch-size 0").user_error(&["--per-device-eval-batch-size", "at least 1"]);
    ask(fine, "--prompt the").user_error(&["--prompt", "--prompts"]);
    ask(fine, "--resume").user_error(&["--output"]);
    of_flags(&model, &["the", ""], "").user_error(&["--prompt 2", "no token"]);
    run(args(&model, "")).user_error(&["--prompt"]);
    of_file(&model, &work.path("none.jsonl"), "").user_error(&["none.jsonl"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_gpu_says_the_same() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let file = written(&work, "lines.txt", &PROMPTS.map(|it| format!("{it}\n")).concat());
    for flags in ["--batch-size 4", "--temperature 1 --top-k 9 --top-p 0.9 --repetition-penalty 1.2 --batch-size 3"] {
        let here = of_file(&model, &file, &format!("{flags} --device cpu")).success().stdout;
        let mut there = args(&model, &format!("{flags} --device cuda"));
        there.extend(["--prompts".into(), file.clone().into()]);
        let Some(mut command) = on_gpu(there, &work.path("cache")) else { return };
        assert_eq!(Outcome::of(&mut command).success().stdout, here, "{flags}");
    }
}
