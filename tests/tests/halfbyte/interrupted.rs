//! Runs that end before their end, or beside another one: nothing is lost, mixed, or taken for what it is not.

use crate::resume::{end, lines, signal, start, wait_for};
use e2e::{Finetune, Outcome, TinyModel, Work, halfbyte, run};
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A finished run with a checkpoint at its last step, without what is written after that: as if it had died there.
fn died_at_the_end(run: &Finetune) {
    let folder = run.done();
    for file in
        ["summary.json", "adapter_config.json", "adapter_model.safetensors", "halfbyte_base.json", "tokenizer.json"]
    {
        fs::remove_file(folder.join(file)).unwrap();
    }
}

#[test]
fn a_run_that_died_after_its_last_checkpoint_is_concluded() {
    let work = Work::new();
    let rows = work.rows();
    let run = |name: &str| work.finetune().flags("--save-steps 2").path("--eval-data", &rows).output(&work.path(name));
    let (whole, died) = (run("whole"), run("died"));
    whole.done();
    died_at_the_end(&died);
    let outcome = died.clone().flags("--resume").run().success();
    assert!(outcome.stderr.contains("all steps were taken"), "{outcome}");
    assert!(whole.adapter_bytes() == died.adapter_bytes(), "the adapters differ");
    let without_checkpoints = |it: &Finetune| -> Vec<String> {
        names(it.folder()).into_iter().filter(|it| !it.starts_with("checkpoint")).collect()
    };
    assert_eq!(without_checkpoints(&whole), without_checkpoints(&died));
    for key in ["steps", "train_loss_last", "eval_loss_before", "eval_loss_after", "trainable_parameters"] {
        assert_eq!(whole.summary()[key], died.summary()[key], "{key}");
    }
    assert_eq!(whole.losses(), died.losses());
    died.flags("--resume").run().user_error(&["ended already"]);
}

#[test]
fn what_makes_a_folder_a_result_is_written_last() {
    for stuck in ["halfbyte_base.json", "tokenizer.json", "adapter_model.safetensors"] {
        let work = Work::new();
        let run = work.finetune().flags("--save-steps 2");
        died_at_the_end(&run);
        // A folder of that name cannot be replaced by a file.
        fs::create_dir(run.folder().join(stuck)).unwrap();
        run.clone().flags("--resume").run().failure(&[stuck, "could not be saved"]);
        for file in ["adapter_config.json", "summary.json"] {
            assert!(!run.folder().join(file).exists(), "{stuck} is not written, but {file} is");
        }
        fs::remove_dir(run.folder().join(stuck)).unwrap();
        run.clone().flags("--resume").done();
    }
}

#[test]
fn a_whole_model_is_one_when_all_of_it_is_written() {
    let work = Work::new();
    let run = work.finetune().without(&["--quant", "--rank", "--lora-alpha", "--target-modules"]);
    let run = run.flags("--method full --learning-rate 1e-4 --save-steps 2");
    let folder = run.done();
    for file in ["summary.json", "config.json", "tokenizer.json"] {
        fs::remove_file(folder.join(file)).unwrap();
    }
    fs::create_dir(folder.join("tokenizer.json")).unwrap();
    run.clone().flags("--resume").run().failure(&["tokenizer.json"]);
    assert!(!folder.join("config.json").exists());
}

#[test]
fn an_adapter_whose_base_is_not_told_is_used_with_a_warning() {
    let work = Work::new();
    let adapter = work.finetune().done();
    let model = work.model(&TinyModel::llama());
    fs::remove_file(adapter.join("halfbyte_base.json")).unwrap();
    let warned = |outcome: Outcome| outcome.ends(0, &["warning: nothing beside the adapter", "--quant"]);
    warned(work.eval(&model, Some(&adapter), ""));
    let mut args = ["generate", "--prompt", "the cat", "--max-new-tokens", "1", "--model"].map(Into::into).to_vec();
    args.extend([model.clone().into_os_string(), "--adapter".into(), adapter.clone().into_os_string()]);
    warned(run(args));
    let told = work.eval(&model, Some(&adapter), "--quant nf4").success();
    assert!(!told.stderr.contains("nothing beside"), "{told}");
}

#[test]
fn a_run_that_ended_before_its_first_checkpoint_begins_again() {
    let work = Work::new();
    let run = work.finetune().flags("--save-steps 0");
    let whole = run.clone().output(&work.path("whole"));
    let folder = work.path("run");
    fs::create_dir(&folder).unwrap();
    // Of a folder that holds nothing but what a killed process was writing nobody needs to know.
    fs::write(folder.join(".tmp-a1b2c3"), "half").unwrap();
    fs::create_dir(folder.join(".tmp-checkpoint-2")).unwrap();
    fs::write(folder.join(".lock"), "").unwrap();
    run.done();
    assert!(!names(&folder).iter().any(|it| it.starts_with('.')), "{:?}", names(&folder));

    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::copy(whole.done().join("config.toml"), folder.join("config.toml")).unwrap();
    let outcome = run.run().user_error(&["not empty", "--overwrite"]);
    assert!(!outcome.stderr.contains("--resume"), "there is nothing to resume: {outcome}");
    let outcome = run.clone().flags("--resume").run().success();
    assert!(outcome.stderr.contains("begins again"), "{outcome}");
    assert!(whole.adapter_bytes() == run.adapter_bytes());
    run.flags("--resume").run().user_error(&["a result, but no checkpoint", "--overwrite"]);
}

#[test]
fn messages_that_nobody_takes_end_nothing() {
    let work = Work::new();
    let run = work.finetune().flags("--save-steps 2");
    // Whoever listened is gone after the first line, as with `2>&1 | head -1`.
    let mut child = start(&run);
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let listened = run.adapter_bytes();
    if Path::new("/dev/full").exists() {
        let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
        let status = run.clone().flags("--overwrite").command().stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(listened == run.adapter_bytes());
        let mut args =
            ["generate", "-v", "--prompt", "the cat", "--max-new-tokens", "1", "--model"].map(Into::into).to_vec();
        args.push(work.model(&TinyModel::llama()).into_os_string());
        assert_eq!(halfbyte().args(args).stderr(full()).stdout(Stdio::null()).status().unwrap().code(), Some(0));
    }
}

#[test]
fn whatever_is_stopped_says_how_it_goes_on() {
    let work = Work::new();
    let (model, prompts) = (work.model(&TinyModel::llama()), work.path("prompts.txt"));
    fs::write(&prompts, "the cat\n".repeat(400)).unwrap();
    let into = |name: &str, flag: &[&str]| {
        let mut command = halfbyte();
        command.args(["generate", "--max-new-tokens", "40", "--batch-size", "1", "--compute-dtype", "f32"]).args(flag);
        command.args(["--model".as_ref(), model.as_os_str(), "--prompts".as_ref(), prompts.as_os_str()]);
        command.arg("--output").arg(work.path(name)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut child = into("part.jsonl", &[]).spawn().unwrap();
    wait_for(&mut child, || lines(&work.path("part.jsonl")) > 2);
    signal(&child, "TERM");
    end(child).ends(130, &["interrupted", "--resume"]);
    assert!(lines(&work.path("part.jsonl")) < 400, "it was too late to stop anything");
    end(into("part.jsonl", &["--resume"]).spawn().unwrap()).success();
    end(into("whole.jsonl", &[]).spawn().unwrap()).success();
    assert!(fs::read(work.path("part.jsonl")).unwrap() == fs::read(work.path("whole.jsonl")).unwrap());
}

#[test]
fn who_stops_reading_results_is_told_nothing() {
    let work = Work::new();
    let mut command = halfbyte();
    command.args([
        "generate",
        "--json",
        "--max-new-tokens",
        "1",
        "--prompt",
        "the cat",
        "--prompt",
        "a dog",
        "--model",
    ]);
    command.arg(work.model(&TinyModel::llama())).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let outcome = child.wait_with_output().unwrap();
    let said = String::from_utf8(outcome.stderr).unwrap();
    assert!(outcome.status.code() == Some(1) && !said.contains("error"), "{:?}: {said}", outcome.status);
}

#[test]
fn the_signals_of_schedulers_and_closing_terminals_save_as_control_c_does() {
    for name in ["TERM", "HUP"] {
        let work = Work::new();
        let long = work.finetune().flags("--max-steps 100000 --save-steps 0");
        let mut child = start(&long);
        let folder = work.path("run");
        wait_for(&mut child, || lines(&folder.join("metrics.jsonl")) > 2);
        signal(&child, name);
        // A terminal that closes sends it by two ways.
        signal(&child, name);
        let outcome = end(child);
        let checkpoint = format!("checkpoint-{}", lines(&folder.join("metrics.jsonl")));
        let outcome = outcome.ends(130, &["--resume", &checkpoint]);
        assert!(folder.join(&checkpoint).is_dir(), "{name}: {outcome}");
    }
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_and_a_killed_one_is_in_nobodys_way() {
    let work = Work::new();
    let long = work.finetune().flags("--max-steps 100000 --save-steps 2");
    let mut child = start(&long);
    let folder = work.path("run");
    wait_for(&mut child, || folder.join("checkpoint-2").exists());
    for flag in ["--overwrite", "--resume"] {
        // Few steps, so that one that is not refused comes to an end.
        long.clone().flags(flag).flags("--max-steps 3").run().user_error(&["another run", "--output"]);
    }
    assert!(child.try_wait().unwrap().is_none(), "the first goes on");
    signal(&child, "KILL");
    end(child);
    let total = lines(&folder.join("metrics.jsonl")) + 1;
    long.clone().flags(&format!("--resume --max-steps {total}")).done();
    let whole = long.clone().flags(&format!("--max-steps {total}")).output(&work.path("whole"));
    whole.done();
    assert!(whole.adapter_bytes() == long.adapter_bytes());
    assert!(!folder.join(".lock").exists());
}

#[test]
fn a_checkpoint_whose_name_tells_another_step_is_refused() {
    let work = Work::new();
    let run = work.finetune().flags("--save-steps 2");
    let folder = run.done();
    fs::rename(folder.join("checkpoint-4"), folder.join("checkpoint-7")).unwrap();
    run.flags("--resume --max-steps 9").run().user_error(&["checkpoint-7", "is of step 4", "says 7"]);
}

#[test]
fn an_interrupted_command_leaves_the_old_model_and_is_swept_by_the_next() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let (parent, output) = (work.path("models"), work.path("models/q"));
    let quantize = |flags: &str| {
        let mut args = vec!["quantize".into(), "--model".into(), model.clone().into_os_string(), "--output".into()];
        args.push(output.clone().into_os_string());
        args.extend(flags.split_whitespace().map(Into::into));
        run(args)
    };
    quantize("--quant fp4").success();
    let before = work.contents(&output);
    // What a killed command leaves.
    fs::create_dir(parent.join(".tmp-q")).unwrap();
    fs::write(parent.join(".tmp-q/model.safetensors"), "half").unwrap();
    fs::write(parent.join(".lock-q"), "").unwrap();
    // Another command is at it.
    let lock = File::options().write(true).open(parent.join(".lock-q")).unwrap();
    lock.lock().unwrap();
    quantize("--overwrite").user_error(&["is being written by another command"]);
    assert!(work.contents(&output) == before);
    drop(lock);
    quantize("--overwrite").success();
    assert_eq!(names(&parent), ["q"]);
    assert!(work.contents(&output) != before);
}

#[test]
fn a_chat_outlives_a_bad_line() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let mut child = halfbyte()
        .args(["chat", "--max-new-tokens", "2", "--model"])
        .arg(model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    let long = "the cat ".repeat(200);
    to.write_all(b"the cat\n\xff\xfe\n").unwrap();
    to.write_all(long.as_bytes()).unwrap();
    to.write_all(b"\nthe dog\n").unwrap();
    drop(to);
    let outcome = Outcome::new("chat".into(), &child.wait_with_output().unwrap());
    let outcome = outcome.ends(0, &["no UTF-8", "positions for 64", "/reset"]);
    assert_eq!(outcome.stdout.lines().count(), 2, "the good lines are answered: {outcome}");
}

/// For as long as a loop takes, so that a killed process is seen to be gone.
#[test]
fn kills_at_any_time_leave_a_folder_that_goes_on() {
    let work = Work::new();
    let whole = work.finetune().flags("--save-steps 1 --max-steps 12").output(&work.path("whole"));
    whole.done();
    let run = work.finetune().flags("--save-steps 1 --max-steps 12");
    for delay in [5, 40, 60, 80, 100, 120, 150, 200] {
        let again = if run.folder().join("config.toml").exists() { run.clone().flags("--resume") } else { run.clone() };
        let mut child = start(&again);
        thread::sleep(Duration::from_millis(delay));
        if child.try_wait().unwrap().is_none() {
            signal(&child, "KILL");
        }
        let outcome = end(child);
        assert!(matches!(outcome.code, None | Some(0 | 2)), "{outcome}");
        assert!(outcome.code != Some(2) || outcome.stderr.contains("ended already"), "{outcome}");
    }
    let outcome = run.clone().flags("--resume").run();
    assert!(outcome.code == Some(0) || outcome.stderr.contains("ended already"), "{outcome}");
    assert!(whole.adapter_bytes() == run.adapter_bytes());
    assert_eq!(whole.losses(), run.losses());
}
