//! Whose chat template writes what an adapter is measured on, asked, and merged with: its own, wherever the base has another or none.

use crate::chat::{TEMPLATE, eval, talks};
use e2e::{Outcome, TinyModel, Work, halfbyte, run};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

/// Another than [`TEMPLATE`].
const OTHER: &str = "{% for m in messages %}the {{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}the assistant{% endif %}";

/// A base without a template.
struct Case {
    work: Work,
    base: PathBuf,
    data: PathBuf,
}

impl Case {
    fn new() -> Case {
        let work = Work::new();
        let (base, data) = (work.model(&TinyModel::llama()), talks(&work, "talks.jsonl"));
        Case { work, base, data }
    }

    /// An adapter that was trained with a template, and its held-out loss at the end.
    fn adapter(&self, name: &str, template: &str) -> (PathBuf, f64) {
        self.adapter_by(name, &self.work.path(&format!("{name}.jinja")), template)
    }

    /// The same, with the template in this file.
    fn adapter_by(&self, name: &str, file: &Path, template: &str) -> (PathBuf, f64) {
        fs::write(file, template).unwrap();
        let run = self.work.finetune().output(&self.work.path(name)).path("--data", &self.data);
        let run = run.path("--eval-data", &self.data).path("--chat-template", file);
        let run = run.flags("--max-steps 8 --max-length 64 --quant none --method lora");
        (run.done(), run.summary()["eval_loss_after"].as_f64().unwrap())
    }

    /// The loss of an adapter, or of the base, on what was trained on.
    fn loss(&self, model: &Path, adapter: Option<&Path>, flags: &str) -> f64 {
        let found = eval(model, &self.data, adapter, &format!("--max-length 64 {flags}"));
        assert!(!found.stderr.contains("no chat template"), "{found}");
        found.json()["loss"].as_f64().unwrap()
    }
}

/// `COMMAND --model MODEL --adapter NAME=FOLDER.. FLAGS`.
fn args(command: &str, model: &Path, adapters: &[(&str, &Path)], flags: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec![command.into(), "--model".into(), model.into()];
    for (name, folder) in adapters {
        let mut named = OsString::from(format!("{name}="));
        named.push(folder);
        args.extend(["--adapter".into(), named]);
    }
    args.extend(flags.split_whitespace().map(OsString::from));
    args
}

fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() < 1e-5 * expected
}

#[test]
fn an_adapter_is_measured_by_its_own_template() {
    let case = Case::new();
    let (a, expected) = case.adapter("a", TEMPLATE);
    let found = case.loss(&case.base, Some(&a), "");
    assert!(near(found, expected), "{found}, at the end of training {expected}");
    let instructions = case.loss(&case.base, Some(&a), "--chat-template instruction");
    assert!((instructions - expected).abs() > 0.01, "the template makes a difference: {instructions}, {expected}");
    // A file that lies beside the base under another name is not among those that are looked at.
    let (beside, expected) = case.adapter_by("beside", &case.base.join("other.jinja"), TEMPLATE);
    let again = case.loss(&case.base, Some(&beside), "");
    assert!(near(again, expected), "{again}, at the end of training {expected}");
    // One that the base has is for the base.
    fs::write(case.base.join("chat_template.jinja"), OTHER).unwrap();
    assert_eq!(case.loss(&case.base, Some(&a), ""), found);
    let alone = case.loss(&case.base, None, "");
    let other = case.work.path("other.jinja");
    fs::write(&other, OTHER).unwrap();
    let mut named = args("eval", &case.base, &[], "--json --compute-dtype f32 --max-length 64 --data");
    named.extend([case.data.clone().into(), "--chat-template".into(), other.into()]);
    assert_eq!(run(named).json()["loss"].as_f64().unwrap(), alone);
}

#[test]
fn adapters_of_different_templates_are_not_measured_as_one() {
    let case = Case::new();
    let ((a, _), (b, _)) = (case.adapter("a", TEMPLATE), case.adapter("b", OTHER));
    let measure = |adapters: &[(&str, &Path)], data: &Path, flags: &str| {
        let mut all = args("eval", &case.base, adapters, &format!("--json --max-length 64 {flags} --data"));
        all.push(data.into());
        run(all)
    };
    let both: [(&str, &Path); 2] = [("first", &a), ("second", &b)];
    measure(&both, &case.data, "").user_error(&["first", "second", "chat_template.jinja", "--chat-template"]);
    let lines = |it: Outcome| it.success().stdout.lines().count();
    assert_eq!(lines(measure(&both, &case.data, "--chat-template chatml")), 2);
    assert_eq!(lines(measure(&[("first", &a), ("second", &a)], &case.data, "")), 2);
    // Templates write conversations alone.
    assert_eq!(lines(measure(&both, &case.work.rows(), "")), 2);
}

#[test]
fn each_adapter_is_asked_by_its_own_template() {
    let case = Case::new();
    let ((a, _), (b, _)) = (case.adapter("a", TEMPLATE), case.adapter("b", OTHER));
    let both: [(&str, &Path); 2] = [("b", &b), ("a", &a)];
    let ask = |flags: &str| {
        let mut all = args("generate", &case.base, &both, &format!("--json --max-new-tokens 3 {flags} --prompt"));
        all.push("the cat".into());
        run(all)
    };
    let prompts = |flags: &str| -> Vec<String> {
        let found = ask(flags).success();
        let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["prompt"].as_str().unwrap().to_owned();
        found.stdout.lines().map(of).collect()
    };
    assert_eq!(prompts("--chat --use-adapter a"), ["user : the cat</s>assistant :"]);
    assert_eq!(prompts("--chat --use-adapter b"), ["the user the cat</s>the assistant"]);
    let instruction = "### Instruction:\nthe cat\n\n### Response:\n";
    assert_eq!(prompts("--chat --use-adapter none"), [instruction]);
    ask("--chat").user_error(&["`b`", "`a`", "chat_template.jinja", "--use-adapter", "--chat-template"]);
    assert_eq!(prompts("--chat --chat-template instruction"), [instruction, instruction]);
    assert_eq!(prompts(""), ["the cat", "the cat"], "no conversation");
    fs::write(case.base.join("chat_template.jinja"), OTHER).unwrap();
    assert_eq!(prompts("--chat --use-adapter none"), ["the user the cat</s>the assistant"]);
}

#[test]
fn a_merged_model_has_its_adapters_template() {
    let case = Case::new();
    let (adapter, expected) = case.adapter("a", TEMPLATE);
    let merge = |name: &str| {
        let output = case.work.path(name);
        let mut all = args("merge", &case.base, &[], "--dtype f32 --adapter");
        all.extend([adapter.clone().into(), "--output".into(), output.clone().into()]);
        run(all).success();
        output
    };
    let is_right = |merged: &Path| {
        let found = case.loss(merged, None, "");
        assert!((found - expected).abs() < 1e-3, "{found}, base and adapter {expected}");
    };
    let merged = merge("of none");
    assert_eq!(fs::read_to_string(merged.join("chat_template.jinja")).unwrap(), TEMPLATE);
    is_right(&merged);

    // The base has one, too.
    fs::write(case.base.join("chat_template.jinja"), OTHER).unwrap();
    is_right(&merge("of another"));
    // As PEFT and older versions of transformers keep it: in the tokenizer's settings, which a file of its own would go before.
    fs::remove_file(adapter.join("chat_template.jinja")).unwrap();
    let settings =
        |template: &str| json!({ "eos_token": "</s>", "unk_token": "?", "chat_template": template }).to_string();
    fs::write(adapter.join("tokenizer_config.json"), settings(TEMPLATE)).unwrap();
    is_right(&merge("of settings"));
    // Or in the file of a processor, before which the settings of the base would go.
    fs::remove_file(adapter.join("tokenizer_config.json")).unwrap();
    fs::remove_file(case.base.join("chat_template.jinja")).unwrap();
    let path = case.base.join("tokenizer_config.json");
    let before = fs::read(&path).unwrap();
    fs::write(&path, settings(OTHER)).unwrap();
    fs::write(adapter.join("chat_template.json"), json!({ "chat_template": TEMPLATE }).to_string()).unwrap();
    is_right(&merge("of a processor"));
    // An adapter that has settings without one is asked by that of its base.
    fs::remove_file(adapter.join("chat_template.json")).unwrap();
    fs::write(adapter.join("tokenizer_config.json"), &before).unwrap();
    fs::write(&path, settings(TEMPLATE)).unwrap();
    is_right(&merge("of the base"));
    fs::write(&path, before).unwrap();

    // One with weights alone changes nothing of what is beside the base.
    for entry in fs::read_dir(&adapter).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_file() && !name.starts_with("adapter_") && name != "halfbyte_base.json" {
            fs::remove_file(&path).unwrap();
        }
    }
    fs::write(case.base.join("chat_template.jinja"), OTHER).unwrap();
    let merged = merge("of weights");
    for (name, bytes) in case.work.contents(&case.base) {
        if !name.ends_with("config.json") && name.extension().is_none_or(|it| it != "safetensors") {
            assert_eq!(fs::read(merged.join(&name)).unwrap(), bytes, "{}", name.display());
        }
    }
}

#[test]
fn in_a_talk_the_template_changes_with_the_adapter() {
    let case = Case::new();
    let ((a, _), (b, _)) = (case.adapter("a", TEMPLATE), case.adapter("b", OTHER));
    let talk = |adapters: &[(&str, &Path)], flags: &str, lines: &str| {
        let mut command = halfbyte();
        command.args(args("chat", &case.base, adapters, &format!("--max-new-tokens 5 --compute-dtype f32 {flags}")));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        Outcome::new(lines.to_owned(), &child.wait_with_output().unwrap()).success()
    };
    let (of_a, of_b) = (talk(&[("a", &a)], "", "the cat\n").stdout, talk(&[("b", &b)], "", "the cat\n").stdout);
    let both: [(&str, &Path); 2] = [("b", &b), ("a", &a)];
    let found = talk(&both, "", "the cat\n/reset\n/adapter a\nthe cat\n/reset\n/adapter b\nthe cat\n");
    assert_eq!(found.stdout, format!("{of_b}{of_a}{of_b}"));
    assert!(found.stderr.contains("conversations are written by") && found.stderr.contains("a/chat_template.jinja"));
    // What was said before is written anew.
    let twice = talk(&both, "", "the cat\n/adapter a\nthe dog\n").stdout;
    let of_b = of_b.trim_end_matches('\n');
    let mut all = args("generate", &case.base, &[("a", &a)], "--max-new-tokens 5 --compute-dtype f32 --prompt");
    let said = of_b.trim();
    all.push(format!("user : the cat</s>assistant : {said}</s>user : the dog</s>assistant :").into());
    assert_eq!(twice, format!("{of_b}\n{}", run(all).success().stdout));

    // The base has none.
    let base = talk(&[], "--layout chat", "the cat\n").stdout;
    let found = talk(&both, "", "/adapter none\nthe cat\n");
    assert_eq!(found.stdout, base);
    assert!(found.stderr.contains("no chat template"), "{found}");
    assert_eq!(talk(&both, "", "/unload b\nthe cat\n").stdout, base, "the base is in use then");
    let kept = talk(&both, "--chat-template chatml", "/adapter a\nthe cat\n");
    assert_eq!(kept.stdout, talk(&[("a", &a)], "--chat-template chatml", "the cat\n").stdout);
    assert!(!kept.stderr.contains("conversations are written by"), "{kept}");
    // A text stays one, whoever continues it.
    let text = talk(&[("a", &a)], "--layout text", "the cat\n").stdout;
    let silent = talk(&both, "--layout text", "/adapter a\nthe cat\n");
    assert_eq!(silent.stdout, text);
    assert!(!silent.stderr.contains("warning"), "{silent}");
    let plain = case.work.finetune().output(&case.work.path("plain")).done();
    let told = talk(&[("plain", &plain), ("a", &a)], "--quant none", "/adapter a\nthe cat\n");
    assert_eq!(told.stdout, text);
    assert!(told.stderr.contains("a has a chat template") && told.stderr.contains("--layout chat"), "{told}");
}
