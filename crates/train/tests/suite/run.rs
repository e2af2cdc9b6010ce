use crate::common::{Spoiled, config, model, newest, nothing_beside, optim, rows, values};
use halfbyte_autograd::{Tape, Var};
use halfbyte_data::{Batch, BatchConfig, Dataset};
use halfbyte_models::Model;
use halfbyte_paged_optim::Schedule;
use halfbyte_tensor::DType;
use halfbyte_train::{
    BoxError, Checkpoints, End, Error, Event, Length, LossScale, Micro, Objective, Run, RunConfig, RunState, Saving,
    StepConfig, StepReport,
};
use std::sync::atomic::{AtomicBool, Ordering};

/// In file order, two rows a batch.
fn small() -> RunConfig {
    RunConfig { batches: BatchConfig { batch_size: 2, shuffle: None, ..config().batches }, ..config() }
}

fn length(accumulation: usize, epochs: f64, max_steps: Option<usize>) -> Length {
    Length { accumulation, epochs, max_steps }
}

/// The reports of a run.
fn reports(config: RunConfig, data: &Dataset) -> Vec<StepReport> {
    let mut found = Vec::new();
    let mut listen = |event: &Event<'_>| {
        if let Event::Step(report) = event {
            found.push(**report);
        }
        Ok(())
    };
    let model = model();
    let mut optim = optim(model.as_ref());
    let mut run = Run::new(config, (model.as_ref(), None), &mut optim, data);
    run.observers.push(&mut listen);
    run.train(None).unwrap();
    found
}

#[test]
fn the_rate_rises_over_the_warmup_and_the_last_step_still_learns() {
    let rates = |schedule, warmup_steps| -> Vec<f64> {
        let config =
            RunConfig { schedule, warmup_steps, length: length(1, 1.0, Some(4)), learning_rate: 1.0, ..small() };
        reports(config, &rows(8)).iter().map(|it| it.learning_rate).collect()
    };
    assert_eq!(rates(Schedule::Linear, 0), [1.0, 0.75, 0.5, 0.25]);
    assert_eq!(rates(Schedule::Linear, 2), [0.0, 0.5, 1.0, 0.5]);
    assert_eq!(rates(Schedule::Constant, 1), [0.0, 1.0, 1.0, 1.0]);
    let cosine = rates(Schedule::COSINE, 0);
    assert!(cosine[0] == 1.0 && (cosine[2] - 0.5).abs() < 1e-12 && cosine[3] > 0.0, "{cosine:?}");
}

#[test]
fn a_step_never_reaches_into_the_next_pass() {
    let data = rows(5);
    let tokens = |rows: std::ops::Range<usize>| rows.map(|it| data.row(it).ids.len()).sum::<usize>();
    let found = reports(RunConfig { length: length(2, 2.0, None), ..small() }, &data);
    // Three batches a pass: two, and the last alone.
    let seen: Vec<(usize, f64, usize)> = found.iter().map(|it| (it.step, it.epoch, it.tokens)).collect();
    let (most, last) = (tokens(0..4), tokens(4..5));
    assert_eq!(seen, [(1, 2.0 / 3.0, most), (2, 1.0, last), (3, 1.0 + 2.0 / 3.0, most), (4, 2.0, last)]);
    assert_eq!(
        reports(RunConfig { length: length(1, 1.0, Some(3)), ..small() }, &data).len(),
        3,
        "steps win over epochs"
    );
    assert_eq!(
        reports(RunConfig { length: length(1, 0.5, None), ..small() }, &data).len(),
        2,
        "half a pass, rounded up"
    );
}

/// What is told, in words.
fn story(event: &Event<'_>) -> String {
    match event {
        Event::Started { first, total } => format!("started {first} of {total}"),
        Event::Begins { step } => format!("begins {step}"),
        Event::Step(it) => format!("step {}{}", it.step, if it.evaluates { ", evaluates" } else { "" }),
        Event::Evaluating { done, of } => format!("evaluating {done} of {of}"),
        Event::Evaluated { step, .. } => format!("evaluated {step}"),
        Event::Saved { step, path } => format!("saved {step} in {}", path.file_name().unwrap().display()),
        Event::Interrupted { step } => format!("interrupted {step}"),
        Event::Ended { steps, .. } => format!("ended {steps}"),
        other => format!("{other:?}"),
    }
}

/// Runs four steps with an evaluation and a checkpoint every second one, interrupted after step `stop`, from the newest
/// checkpoint if there is one. Gives the end, the story and the parameters.
fn told(folder: &std::path::Path, stop: usize) -> (Result<End, Error>, Vec<String>, Vec<Vec<f32>>) {
    let (data, held_out, flag) = (rows(8), rows(3), AtomicBool::new(false));
    let mut story_so_far = Vec::new();
    let mut listen = |event: &Event<'_>| {
        story_so_far.push(story(event));
        if matches!(event, Event::Step(it) if it.step == stop) {
            flag.store(true, Ordering::SeqCst);
        }
        Ok(())
    };
    let model = model();
    let mut optim = optim(model.as_ref());
    let checkpoints = Checkpoints::new(folder);
    let state = newest(&checkpoints, &mut optim);
    let mut run = Run::new(RunConfig { eval_steps: 2, ..small() }, (model.as_ref(), None), &mut optim, &data);
    run.eval = Some(&held_out);
    run.interrupt = &flag;
    let mut beside = nothing_beside;
    let (every, keep, notes) = (2, 2, serde_json::Map::new());
    run.saving = Some(Saving { checkpoints: &checkpoints, every, keep, best: false, notes, beside: &mut beside });
    run.observers.push(&mut listen);
    let end = run.train(state);
    (end, story_so_far, values(model.as_ref()))
}

#[test]
fn events_come_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (end, story, _) = told(folder.path(), 0);
    assert_eq!(end.unwrap(), End::Finished { steps: 4 });
    let expected = [
        "started 0 of 4",
        "begins 1",
        "step 1",
        "begins 2",
        "step 2, evaluates",
        "evaluating 2 of 3",
        "evaluating 3 of 3",
        "evaluated 2",
        "saved 2 in checkpoint-2",
        "begins 3",
        "step 3",
        "begins 4",
        "step 4, evaluates",
        "evaluating 2 of 3",
        "evaluating 3 of 3",
        "evaluated 4",
        "saved 4 in checkpoint-4",
        "ended 4",
    ];
    assert_eq!(story, expected);
}

#[test]
fn an_interrupted_run_saves_and_goes_on_with_the_same_bits() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, _, expected) = told(whole.path(), 0);
    let (end, story, _) = told(parts.path(), 3);
    let checkpoint = Some(parts.path().join("checkpoint-3"));
    assert_eq!(end.unwrap(), End::Interrupted { step: 3, total: 4, checkpoint });
    assert_eq!(story[story.len() - 2..], ["saved 3 in checkpoint-3", "interrupted 3"]);
    let (end, story, values) = told(parts.path(), 0);
    assert_eq!(end.unwrap(), End::Finished { steps: 4 });
    assert_eq!(story[..2], ["started 3 of 4", "begins 4"]);
    assert!(values == expected, "the parameters differ");
    let (end, story, values) = told(parts.path(), 0);
    assert_eq!(end.unwrap(), End::Finished { steps: 4 });
    assert_eq!(story, ["started 4 of 4", "ended 4"], "nothing is left but to conclude");
    assert!(values == expected, "the parameters differ");
}

/// Goes on from the checkpoint of step 2 after a change to its state.
fn resumed(folder: &std::path::Path, change: impl FnOnce(&mut RunState)) -> Result<End, Error> {
    let (data, model) = (rows(8), model());
    let mut optim = optim(model.as_ref());
    let path = folder.join("checkpoint-2");
    let mut state = RunState::read(&path).unwrap();
    optim.load(&path, state.taken()).unwrap();
    change(&mut state);
    Run::new(small(), (model.as_ref(), None), &mut optim, &data).train(Some(state))
}

#[test]
fn a_state_that_is_not_one_of_this_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    told(folder.path(), 0).0.unwrap();
    resumed(folder.path(), |_| ()).unwrap();
    let refused = |part: &str, change: fn(&mut RunState)| {
        let error = resumed(folder.path(), change).unwrap_err();
        assert!(matches!(error, Error::State { step: 2, .. }) && error.to_string().contains(part), "{error}");
    };
    refused("tensors", |it| it.reached.truncate(1));
    refused("examples", |it| it.examples = 9);
    refused("place in the data", |it| it.batch += 1);
    refused("place in the data", |it| it.epoch += 1);
    refused("loss scale", |it| it.loss_scale = Some(LossScale::new(DType::F16)));
    let ended = resumed(folder.path(), |it| (it.step, it.batch, it.epoch) = (6, 2, 1));
    assert!(matches!(ended, Err(Error::Ended { step: 6, total: 4 })), "{ended:?}");
}

#[test]
fn an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    // A name so long that the folder cannot be given a longer one.
    std::fs::create_dir(folder.path().join(format!("checkpoint-{}1", "0".repeat(240)))).unwrap();
    let (data, model) = (rows(8), model());
    let mut optim = optim(model.as_ref());
    let checkpoints = Checkpoints::new(folder.path());
    let mut beside = nothing_beside;
    let mut told = Vec::new();
    let mut listen = |event: &Event<'_>| {
        told.push(story(event));
        Ok(())
    };
    let mut run = Run::new(small(), (model.as_ref(), None), &mut optim, &data);
    run.saving = Some(Saving {
        checkpoints: &checkpoints,
        every: 4,
        keep: 1,
        best: false,
        notes: Default::default(),
        beside: &mut beside,
    });
    run.observers.push(&mut listen);
    run.train(None).unwrap();
    assert!(folder.path().join("checkpoint-4").exists());
    assert!(told[told.len() - 2].contains("NotRemoved"), "{told:?}");
}

#[test]
fn checkpoints_that_a_killed_run_had_no_time_to_remove_go_when_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (data, model) = (rows(8), model());
    let checkpoints = Checkpoints::new(folder.path());
    let left = |keep, resumes: bool| {
        let (mut optim, mut beside) = (optim(model.as_ref()), nothing_beside);
        let state = if resumes { newest(&checkpoints, &mut optim) } else { None };
        let mut run = Run::new(small(), (model.as_ref(), None), &mut optim, &data);
        let (notes, best) = (Default::default(), false);
        run.saving = Some(Saving { checkpoints: &checkpoints, every: 1, keep, best, notes, beside: &mut beside });
        run.train(state).unwrap();
        checkpoints.all().unwrap().into_iter().map(|it| it.0).collect::<Vec<_>>()
    };
    assert_eq!(left(3, false), [2, 3, 4]);
    assert_eq!(left(1, true), [4], "although no step is left to be saved");
}

#[test]
fn an_interruption_at_the_last_step_comes_too_late() {
    let folder = tempfile::tempdir().unwrap();
    let (end, story, _) = told(folder.path(), 4);
    assert_eq!(end.unwrap(), End::Finished { steps: 4 });
    assert_eq!(story.last().unwrap(), "ended 4");
}

#[test]
fn without_checkpoints_an_interruption_is_only_an_end() {
    let (data, model, flag) = (rows(8), model(), AtomicBool::new(true));
    let mut optim = optim(model.as_ref());
    let mut run = Run::new(small(), (model.as_ref(), None), &mut optim, &data);
    run.interrupt = &flag;
    assert_eq!(run.train(None).unwrap(), End::Interrupted { step: 1, total: 4, checkpoint: None });
}

#[test]
fn an_observer_that_fails_stops_the_run_with_its_own_words() {
    let (data, model) = (rows(8), model());
    let mut optim = optim(model.as_ref());
    let mut refuse = |event: &Event<'_>| match event {
        Event::Step(it) if it.step == 2 => Err(BoxError::from("the log is full")),
        _ => Ok(()),
    };
    let mut run = Run::new(small(), (model.as_ref(), None), &mut optim, &data);
    run.observers.push(&mut refuse);
    assert_eq!(run.train(None).unwrap_err().to_string(), "the log is full");
    assert_eq!(optim.steps(), 2);
}

#[test]
fn a_run_without_effect_is_no_result() {
    let (data, model) = (rows(8), model());
    let mut optim = optim(model.as_ref());
    let config = RunConfig { learning_rate: 0.0, ..small() };
    let end = Run::new(config, (model.as_ref(), None), &mut optim, &data).train(None);
    assert!(matches!(end, Err(Error::NothingChanged { learning_rate: 0.0 })));
}

/// Overflows in f16 on the first row.
struct FirstOverflows;

impl Objective for FirstOverflows {
    fn counts(&self, batch: &Batch) -> usize {
        batch.trained
    }

    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> halfbyte_train::Result<Var> {
        let gradient = if micro.batch.rows.contains(&0) { f32::INFINITY } else { 1.0 };
        Spoiled { loss: 1.0, gradient }.loss(tape, model, micro)
    }
}

#[test]
fn a_run_whose_loss_scale_left_a_step_out_goes_on_with_the_same_bits() {
    let trained = |folder: &std::path::Path, stop: usize| {
        let (data, model, flag) = (rows(8), model(), AtomicBool::new(false));
        let mut optim = optim(model.as_ref());
        let checkpoints = Checkpoints::new(folder);
        let state = newest(&checkpoints, &mut optim);
        let mut listen = |event: &Event<'_>| {
            flag.store(matches!(event, Event::Step(it) if it.step == stop), Ordering::SeqCst);
            Ok(())
        };
        let step = StepConfig { compute: DType::F16, ..config().step };
        let mut run = Run::new(RunConfig { step, ..small() }, (model.as_ref(), None), &mut optim, &data);
        let (mut beside, every, keep, notes) = (nothing_beside, 0, 1, serde_json::Map::new());
        run.saving = Some(Saving { checkpoints: &checkpoints, every, keep, best: false, notes, beside: &mut beside });
        (run.interrupt, run.objective) = (&flag, &FirstOverflows);
        run.observers.push(&mut listen);
        run.train(state).unwrap();
        (optim.steps(), values(model.as_ref()))
    };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = trained(whole.path(), 0);
    assert_eq!(expected.0, 3, "one of four steps was not taken");
    assert_eq!(trained(parts.path(), 2).0, 1);
    assert!(trained(parts.path(), 0) == expected, "the parameters differ");
}
