//! A run that is stopped and goes on equals one that never stopped.

use e2e::{Finetune, Outcome, TinyModel, Work};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

fn adapter(work: &Work) -> Finetune {
    work.finetune().flags("--lora-dropout 0.1 --save-steps 3 --max-steps 6")
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let work = Work::new();
    let whole = adapter(&work).output(&work.path("whole"));
    whole.done();
    let parts = adapter(&work).output(&work.path("parts"));
    parts.clone().flags("--max-steps 3").done();
    let outcome = parts.clone().flags("--resume").run().success();
    assert!(outcome.stderr.contains("checkpoint-3"), "it says where it goes on from: {outcome}");
    assert!(whole.adapter_bytes() == parts.adapter_bytes(), "the adapters differ");
    assert_eq!(whole.losses(), parts.losses(), "the log has each step once");
}

#[test]
fn a_paged_run_resumes_as_an_unpaged_one() {
    let work = Work::new();
    let whole = adapter(&work).output(&work.path("whole"));
    whole.done();
    let parts = adapter(&work).output(&work.path("parts"));
    parts.clone().flags("--max-steps 3 --optim-resident-mib 0.0078125").done();
    parts.clone().flags("--resume --optim-resident-mib 0.0078125").done();
    assert!(whole.adapter_bytes() == parts.adapter_bytes(), "the adapters differ");
}

#[test]
fn a_checkpoint_is_an_adapter_too() {
    let work = Work::new();
    let whole = adapter(&work);
    let folder = whole.done();
    let three = adapter(&work).flags("--max-steps 3 --save-steps 0").output(&work.path("three"));
    three.done();
    let bytes = fs::read(folder.join("checkpoint-3/adapter_model.safetensors")).unwrap();
    assert!(bytes == three.adapter_bytes(), "the adapters differ");
}

#[test]
fn old_checkpoints_go() {
    let work = Work::new();
    let folder = work.finetune().flags("--save-steps 1 --max-steps 5 --save-total-limit 2").done();
    let has = |step: usize| folder.join(format!("checkpoint-{step}")).exists();
    assert_eq!([1, 2, 3, 4, 5].map(has), [false, false, false, true, true]);
}

#[test]
fn a_finished_run_says_so_when_resumed() {
    let work = Work::new();
    let run = adapter(&work);
    run.done();
    let before = run.adapter_bytes();
    run.clone().flags("--resume").run().user_error(&["ended already", "--max-steps"]);
    assert!(run.adapter_bytes() == before);
}

#[test]
fn control_c_saves_and_says_how_to_go_on() {
    let work = Work::new();
    let long = work.finetune().flags("--max-steps 100000 --save-steps 0");
    let mut child = start(&long);
    let folder = work.path("run");
    wait_for(&mut child, || lines(&folder.join("metrics.jsonl")) > 2);
    signal(&child, "INT");
    let outcome = end(child);
    let done = lines(&folder.join("metrics.jsonl"));
    let checkpoint = format!("checkpoint-{done}");
    let outcome = outcome.ends(130, &["--resume", &checkpoint]);
    assert!(folder.join(&checkpoint).is_dir(), "{outcome}");

    let total = done + 2;
    long.clone().flags(&format!("--resume --max-steps {total}")).done();
    let whole = long.clone().flags(&format!("--max-steps {total}")).output(&work.path("whole"));
    whole.done();
    assert!(whole.adapter_bytes() == long.adapter_bytes(), "the adapters differ");
    assert_eq!(whole.losses(), long.losses());
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let work = Work::new();
    let long = work.finetune().flags("--max-steps 100000 --save-steps 2");
    let mut child = start(&long);
    let folder = work.path("run");
    wait_for(&mut child, || folder.join("checkpoint-4").exists());
    signal(&child, "KILL");
    assert_eq!(end(child).code, None, "the signal ended it");
    // Whether the signal met it at writing is a matter of luck; this is what it would have left.
    fs::create_dir(folder.join(".tmp-checkpoint-x")).unwrap();
    fs::write(folder.join(".tmp-checkpoint-x/trainer_state.json"), "{").unwrap();

    let total = lines(&folder.join("metrics.jsonl")) + 3;
    long.clone().flags(&format!("--resume --max-steps {total}")).done();
    let whole = long.clone().flags(&format!("--max-steps {total}")).output(&work.path("whole"));
    whole.done();
    assert!(whole.adapter_bytes() == long.adapter_bytes(), "the adapters differ");
    assert_eq!(whole.losses(), long.losses());
    let drafts = fs::read_dir(&folder)
        .unwrap()
        .filter(|it| it.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tmp"));
    assert_eq!(drafts.count(), 0, "what the killed run was writing is cleared away");
}

pub(crate) fn start(run: &Finetune) -> Child {
    run.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("halfbyte starts")
}

pub(crate) fn wait_for(child: &mut Child, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(child.try_wait().expect("a child").is_none(), "the run ended before it was stopped");
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not get anywhere");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().expect("there is a kill");
    assert!(sent.success());
}

pub(crate) fn end(child: Child) -> Outcome {
    Outcome::new("a stopped run".into(), &child.wait_with_output().expect("a child"))
}

pub(crate) fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |it| it.lines().count())
}

#[test]
fn a_run_goes_on_with_what_it_learned_from_and_says_where_that_is_another() {
    let work = Work::new();
    let run = work.finetune().flags("--max-steps 3 --save-steps 3");
    run.done();
    let resumed = || run.clone().flags("--max-steps 6 --resume").run();
    let (model, data) = (work.model(&TinyModel::llama()), work.rows());
    let weights = model.join("model.safetensors");
    let (rows, bytes) = (fs::read(&data).unwrap(), fs::read(&weights).unwrap());

    // As many rows as there were.
    let text = String::from_utf8(rows.clone()).unwrap();
    let other = text.replacen("the", "and", 1);
    assert_ne!(other, text);
    fs::write(&data, other).unwrap();
    resumed().user_error(&["checkpoint-3", "another run", "the rows to be trained on"]);
    fs::write(&data, rows).unwrap();

    let mut zeroed = bytes.clone();
    zeroed[bytes.len() - 4096..].fill(0);
    fs::write(&weights, &zeroed).unwrap();
    resumed().user_error(&["checkpoint-3", "another run", "the weights of the base"]);
    // An adapter can be used with another base of its shape, but not without a word.
    let told = |outcome: Outcome| outcome.stderr.contains("was trained on other weights");
    let eval = || work.eval(&model, Some(run.folder()), "").success();
    assert!(told(eval()));
    fs::write(&weights, bytes).unwrap();
    assert!(!told(eval()));
    resumed().success();
}
