//! Conversations, from the columns of a file to an adapter and back to a talk with it.

use e2e::{Outcome, TinyModel, Work, halfbyte, run};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

/// Every turn ends with the end-of-text token.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}";

fn says(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Conversations of two turns.
pub(crate) fn talks(work: &Work, name: &str) -> PathBuf {
    let row = json!({ "messages": [says("user", "the cat"), says("assistant", "sat on the mat"),
                                   says("user", "the dog"), says("assistant", "ran")] });
    written(work, name, &vec![row; 8])
}

pub(crate) fn written(work: &Work, name: &str, rows: &[Value]) -> PathBuf {
    let path = work.path(name);
    fs::write(&path, rows.iter().map(|it| format!("{it}\n")).collect::<String>()).unwrap();
    path
}

/// A model with a chat template of its own.
pub(crate) fn with_template(work: &Work) -> PathBuf {
    let model = work.model(&TinyModel::llama());
    fs::write(model.join("chat_template.jinja"), TEMPLATE).unwrap();
    model
}

pub(crate) fn eval(model: &Path, data: &Path, adapter: Option<&Path>, flags: &str) -> Outcome {
    let mut args: Vec<OsString> = ["eval", "--json", "--compute-dtype", "f32", "--model"].map(OsString::from).to_vec();
    args.extend([model.into(), "--data".into(), data.into()]);
    if let Some(adapter) = adapter {
        args.extend(["--adapter".into(), adapter.into()]);
    }
    args.extend(flags.split_whitespace().map(OsString::from));
    run(args)
}

#[test]
fn what_is_learned_of_a_conversation_is_counted_and_written_down() {
    let work = Work::new();
    let (model, data) = (with_template(&work), talks(&work, "talks.jsonl"));
    let train = |flags: &str| {
        let run = work.finetune().path("--model", &model).path("--data", &data);
        let run = run.flags("--max-steps 1 --max-length 64 --overwrite").flags(flags);
        let said = run.run().success().stderr;
        (said, run.summary())
    };
    let (said, summary) = train("");
    // Four words and an end, one word and an end.
    assert!(said.contains(&format!("{} trained; column messages", 8 * 7)), "{said}");
    assert_eq!(summary["used"]["loss_on"], "assistant");
    assert!(summary["used"]["template"].as_str().unwrap().contains("chat_template.jinja"), "{}", summary["used"]);
    assert!(
        !work.path("run/chat_template.jinja").exists()
            || fs::read_to_string(work.path("run/chat_template.jinja")).unwrap() == TEMPLATE
    );
    assert!(train("--loss-on last").0.contains(&format!("{} trained", 8 * 2)));
    let (said, summary) = train("--train-on-inputs");
    assert!(said.contains(&format!("{} trained", summary["data"]["tokens"].as_u64().unwrap() - 8)), "{said}");
    assert_eq!(summary["used"]["loss_on"], "all");
}

#[test]
fn eval_measures_what_finetune_measured() {
    let work = Work::new();
    let (model, talks) = (with_template(&work), talks(&work, "talks.jsonl"));
    let instructions =
        written(&work, "ins.jsonl", &vec![json!({ "question": "the cat", "answer": "sat on the mat" }); 4]);
    for (data, flags) in [
        (&work.rows(), "--append-eos on"),
        (&instructions, "--train-on-inputs"),
        (&instructions, "--layout chat"),
        (&instructions, "--columns prompt=question,completion=answer"),
        (&talks, "--loss-on last"),
        (&talks, "--chat-template chatml --excess-length-strategy drop"),
    ] {
        let run = work.finetune().path("--model", &model).path("--data", data).path("--eval-data", data);
        let run = run.flags("--max-steps 1 --max-length 64 --quant none --method lora --overwrite").flags(flags);
        run.run().success();
        let found = eval(&model, data, Some(&work.path("run")), &format!("{flags} --max-length 64"));
        let found = found.json()["loss"].as_f64().unwrap();
        let expected = run.summary()["eval_loss_after"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-5 * expected, "{flags}: {found}, {expected} after training");
    }
}

#[test]
fn a_model_without_a_template_gets_one_that_its_adapter_keeps() {
    let work = Work::new();
    let data = talks(&work, "talks.jsonl");
    let said = work.finetune().path("--data", &data).flags("--max-steps 1 --max-length 64").run().success().stderr;
    assert!(said.contains("no chat template") && said.contains("--chat-template"), "{said}");
    let kept = fs::read_to_string(work.path("run/chat_template.jinja")).unwrap();
    assert!(kept.contains("### Instruction:"), "{kept}");
    let model = work.model(&TinyModel::llama());
    let ask = |flags: &[&str]| {
        let mut args: Vec<OsString> = ["generate", "--max-new-tokens", "4", "--model"].map(OsString::from).to_vec();
        args.extend([model.clone().into(), "--adapter".into(), work.path("run").into(), "--prompt".into()]);
        args.extend(flags.iter().map(OsString::from));
        run(args).success()
    };
    let chat = ask(&["the cat", "--chat"]);
    assert!(!chat.stderr.contains("no chat template"), "{chat}");
    assert_eq!(chat.stdout, ask(&["the cat", "--layout", "instruction"]).stdout);
}

#[test]
fn a_talk_keeps_the_template_and_the_tokens() {
    let work = Work::new();
    let model = with_template(&work);
    let talk = |flags: &[&str], lines: &str| {
        let mut command = halfbyte();
        command.args(["chat", "--max-new-tokens", "3", "--compute-dtype", "f32", "--model"]).arg(&model).args(flags);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let text = |prompt: &str| {
        let args = ["generate", "--max-new-tokens", "3", "--compute-dtype", "f32", "--prompt", prompt, "--model"];
        let mut args: Vec<OsString> = args.map(OsString::from).to_vec();
        args.push(model.clone().into());
        run(args).success().stdout
    };
    let (said, _) = talk(&[], "the cat\nthe dog\n");
    let answers: Vec<&str> = said.lines().collect();
    let first = "user : the cat</s>assistant :";
    assert_eq!(format!("{}\n", answers[0]), text(first));
    // The first answer was not ended, so the template ends it.
    assert_eq!(format!("{}\n", answers[1]), text(&format!("{first}{}</s>user : the dog</s>assistant :", answers[0])));
    assert_eq!(talk(&["--layout", "text"], "the cat\n").0, text("the cat"));
    let system = talk(&["--system", "a film"], "the cat\n").0;
    assert_eq!(system, text("system : a film</s>user : the cat</s>assistant :"));

    let file = work.path("saved.jsonl");
    let (undone, told) =
        talk(&[], &format!("the dog\n/undo\nthe cat\n/save {}\n/reset\nthe cat\n/undo\n/undo\n", file.display()));
    let lines: Vec<&str> = undone.lines().collect();
    assert_eq!((lines[1], lines[2]), (answers[0], answers[0]));
    assert!(told.contains("nothing was said yet"), "{told}");
    let saved: Value = serde_json::from_str(fs::read_to_string(&file).unwrap().trim()).unwrap();
    assert_eq!(saved["messages"][0], says("user", "the cat"));
    assert_eq!(saved["messages"].as_array().unwrap().len(), 2);
    assert!(eval(&model, &file, None, "").success().json()["tokens"].as_u64().unwrap() > 0, "a row to train on");
}

#[test]
fn rows_are_shown_as_a_training_sees_them() {
    let work = Work::new();
    let (model, data) = (with_template(&work), talks(&work, "talks.jsonl"));
    let show = |flags: &[&str]| {
        let mut args: Vec<OsString> =
            vec!["data".into(), "--model".into(), model.clone().into(), "--data".into(), data.clone().into()];
        args.extend(flags.iter().map(OsString::from));
        run(args).success()
    };
    let text = show(&["--samples", "1"]).stdout;
    assert!(text.contains("example 0: 21 tokens, 7 of them learned"), "{text}");
    assert!(text.contains("[[sat|on|the|mat|</s>]]") && text.contains("[[ran|</s>]]"), "{text}");
    assert!(text.contains("8 rows read, 8 used") && text.contains("21 tokens         8  ####"), "{text}");
    let lines = show(&["--json", "--samples", "2", "--loss-on", "last"]).stdout;
    let rows: Vec<Value> = lines.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let learned = |row: &Value| row["trained"].as_array().unwrap().iter().filter(|it| **it == json!(true)).count();
    assert_eq!((rows.len(), rows[0]["ids"].as_array().unwrap().len(), learned(&rows[0])), (2, 21, 2));
}

#[test]
fn a_command_of_another_program_runs() {
    let work = Work::new();
    let (model, data) = (with_template(&work), talks(&work, "talks.jsonl"));
    let mut args: Vec<OsString> =
        vec!["finetune".into(), "--model_name_or_path".into(), model.into(), "--dataset".into(), data.into()];
    args.extend(["--output_dir".into(), work.path("run").into()]);
    let flags = "--do_train --stage sft --finetuning_type lora --load_in_4bit True --lora_target all --lora_rank 4 --bf16 True \
                 --per_device_train_batch_size 2 --max_steps 1 --assistant_only_loss True --cutoff_len 64 --report_to none --eval_strategy no";
    args.extend(flags.split_whitespace().map(OsString::from));
    let said = run(args.clone()).success().stderr;
    assert!(said.contains("loss on assistant") && said.contains("rank 4"), "{said}");
    args.extend(["--neftune_noise_alpha".into(), "5".into()]);
    run(args).user_error(&["--neftune-noise-alpha", "leave it out"]);
}

#[test]
fn what_is_wrong_with_conversations_is_said_before_a_model_is_loaded() {
    let work = Work::new();
    let model = with_template(&work);
    let refused = |data: &Path, flags: &str, words: &[&str]| {
        let run = work.finetune().path("--model", &model).path("--data", data).flags("--max-length 64").flags(flags);
        run.run().user_error(words);
        assert!(!work.path("run").exists());
    };
    let good = json!({ "messages": [says("user", "the cat"), says("assistant", "sat")] });
    let no_role = written(&work, "role.jsonl", &[good.clone(), json!({ "messages": [{ "content": "the cat" }] })]);
    refused(&no_role, "", &["role.jsonl: row 1", "no role"]);
    fs::write(model.join("chat_template.jinja"), "\n{{ raise_exception('only one turn') if messages | length > 2 }}x")
        .unwrap();
    refused(&talks(&work, "talks.jsonl"), "", &["row 0", "chat_template.jinja, line 2", "only one turn"]);
    fs::write(model.join("chat_template.jinja"), "{% for").unwrap();
    refused(&talks(&work, "talks.jsonl"), "", &["chat_template.jinja", "line 1"]);
    let data = talks(&work, "talks.jsonl");
    refused(&data, "--chat-template absent.jinja", &["absent.jinja", "chatml"]);
    refused(&data, "--chat-template chatml --chat-template-kwargs [1]", &["--chat-template-kwargs", "JSON object"]);
    refused(&work.rows(), "--loss-on assistant", &["loss_on", "text"]);
    refused(&data, "--columns who=messages", &["who", "messages"]);
    fs::write(model.join("chat_template.jinja"), "{% for m in messages %}{{ m.content }} {% endfor %}").unwrap();
    refused(&data, "", &["8 of 8 rows", "--max-doubtful-rows"]);
    let run = work.finetune().path("--model", &model).path("--data", &data).flags("--max-length 64 --max-steps 1");
    run.flags("--max-doubtful-rows 1").done();
}

/// A terminal of the test's own: what is typed goes in, what is shown comes out.
#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_the_arrows_bring_a_line_back() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::{fs::File, io::Read};
    let work = Work::new();
    let model = with_template(&work);
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let theirs = || File::options().read(true).write(true).open(&path).unwrap();
    let mut command = halfbyte();
    command.args(["chat", "--max-new-tokens", "2", "--model"]).arg(&model).env("TERM", "xterm");
    let mut child = command.stdin(theirs()).stdout(theirs()).stderr(Stdio::null()).spawn().unwrap();
    // So that reading ends when the child does.
    drop(command);
    let mut ours = File::from(ours);
    // Each time that a line is asked for, pasting is switched on.
    let mut shown = String::new();
    let mut asked_for_line = |ours: &mut File, times: usize| {
        while shown.matches("\x1b[?2004h").count() < times {
            let mut bytes = [0; 4096];
            let n = ours.read(&mut bytes).unwrap();
            shown += &String::from_utf8_lossy(&bytes[..n]);
        }
    };
    let save = work.path("talk.jsonl");
    // The second is the line before, with a word more.
    let typed =
        ["the cat\r".to_owned(), "\x1b[A sat\r".to_owned(), format!("/save {}\r", save.display()), "\x04".to_owned()];
    for (at, keys) in typed.iter().enumerate() {
        asked_for_line(&mut ours, at + 1);
        ours.write_all(keys.as_bytes()).unwrap();
    }
    assert!(child.wait().unwrap().success());
    let row: Value = serde_json::from_str(fs::read_to_string(&save).unwrap().lines().next().unwrap()).unwrap();
    let asked: Vec<&str> = row["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["role"] == "user")
        .map(|it| it["content"].as_str().unwrap())
        .collect();
    assert_eq!(asked, ["the cat", "the cat sat"]);
}
