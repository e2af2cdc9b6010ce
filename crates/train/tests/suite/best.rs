//! The best state of a run, and runs that end before their last step.

use crate::common::{config, model, newest, nothing_beside, optim, rows, values};
use halfbyte_autograd::{Tape, Var};
use halfbyte_data::{Batch, BatchConfig};
use halfbyte_models::Model;
use halfbyte_tensor::Tensor;
use halfbyte_train::{
    Best, Checkpoints, EarlyStopping, End, Error, Event, Micro, Objective, Run, RunConfig, RunState, Saving,
    objective::CausalLm,
};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Instant,
};

/// Causal language modelling, but that the held-out row, alone in its batch, has the losses of a script.
struct Scripted<'s> {
    losses: &'s [f32],
    next: AtomicUsize,
}

impl Objective for Scripted<'_> {
    fn counts(&self, batch: &Batch) -> usize {
        batch.trained
    }

    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> halfbyte_train::Result<Var> {
        if micro.batch.rows.len() > 1 {
            return CausalLm.loss(tape, model, micro);
        }
        Ok(Var::constant(Tensor::scalar(self.losses[self.next.fetch_add(1, Ordering::SeqCst)])))
    }
}

/// What a run of eight steps does, one evaluation a step.
struct Told {
    end: Result<End, Error>,
    /// What was measured, saved and restored, in order.
    story: Vec<String>,
    /// The parameters after each step, and at the end.
    after: Vec<Vec<Vec<f32>>>,
    last: Vec<Vec<f32>>,
}

/// Goes on from the newest checkpoint in the folder; interrupted after step `stop`.
fn told(folder: &Path, losses: &[f32], (patience, best): (Option<usize>, bool), stop: usize) -> Told {
    let (data, held_out, flag) = (rows(16), rows(1), AtomicBool::new(false));
    let (mut story, mut after) = (Vec::new(), Vec::new());
    let model = model();
    let mut listen = |event: &Event<'_>| {
        match event {
            Event::Step(it) => {
                after.push(values(model.as_ref()));
                flag.store(it.step == stop, Ordering::SeqCst);
            }
            Event::Evaluated { step, loss } => story.push(format!("{step}: {}", loss.loss)),
            Event::Saved { step, .. } => story.push(format!("saved {step}")),
            Event::GaveUp { step, total, best } => {
                story.push(format!("gave up {step} of {total}, best {} ({})", best.step, best.since));
            }
            Event::Restored { best } => story.push(format!("restored {}", best.step)),
            _ => {}
        }
        Ok(())
    };
    let mut optim = optim(model.as_ref());
    let checkpoints = Checkpoints::new(folder);
    let state = newest(&checkpoints, &mut optim);
    let batches = BatchConfig { batch_size: 2, shuffle: None, ..config().batches };
    let early_stopping = patience.map(|patience| EarlyStopping { patience, threshold: 0.0 });
    let config = RunConfig { batches, eval_steps: 1, early_stopping, ..config() };
    let objective = Scripted { losses, next: AtomicUsize::new(state.as_ref().map_or(0, |it| it.step)) };
    let mut run = Run::new(config, (model.as_ref(), None), &mut optim, &data);
    (run.eval, run.objective, run.interrupt) = (Some(&held_out), &objective, &flag);
    let (mut beside, every, keep, notes) = (nothing_beside, 4, 1, serde_json::Map::new());
    run.saving = Some(Saving { checkpoints: &checkpoints, every, keep, best, notes, beside: &mut beside });
    run.observers.push(&mut listen);
    let end = run.train(state);
    Told { end, story, after, last: values(model.as_ref()) }
}

/// The steps of the checkpoints that are there.
fn kept(folder: &Path) -> Vec<usize> {
    Checkpoints::new(folder).all().unwrap().into_iter().map(|it| it.0).collect()
}

#[test]
fn the_state_with_the_lowest_held_out_loss_is_kept_beside_the_newest_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let it = told(folder.path(), &[8.0, 7.0, 5.0, 6.0, 7.0, 5.0, 8.0, 9.0], (None, true), 0);
    assert_eq!(it.end.unwrap(), End::Finished { steps: 8 });
    let saved: Vec<&str> = it.story.iter().map(String::as_str).filter(|it| !it.contains(':')).collect();
    assert_eq!(saved, ["saved 1", "saved 2", "saved 3", "saved 4", "saved 8", "restored 3"]);
    assert_eq!(kept(folder.path()), [3, 8]);
    assert!(it.last == it.after[2], "the parameters of step 3 are there again");
    assert!(it.last != it.after[7]);
}

#[test]
fn the_last_state_is_the_result_where_it_is_the_best_or_nobody_asked_for_the_best() {
    for (losses, best) in [([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], true), ([1.0; 8], false)] {
        let folder = tempfile::tempdir().unwrap();
        let it = told(folder.path(), &losses, (None, best), 0);
        assert!(it.last == it.after[7] && !it.story.last().unwrap().contains("restored"), "{:?}", it.story);
        assert_eq!(kept(folder.path()), [8]);
    }
}

#[test]
fn a_run_ends_when_nothing_better_came_for_as_many_evaluations_as_it_was_given() {
    let losses = [8.0, 5.0, 6.0, 7.0, 4.0, 6.0, 6.0, 6.0];
    let folder = tempfile::tempdir().unwrap();
    let it = told(folder.path(), &losses, (Some(2), true), 0);
    assert_eq!(it.end.unwrap(), End::Finished { steps: 4 });
    assert_eq!(it.story[it.story.len() - 2..], ["gave up 4 of 8, best 2 (2)", "restored 2"]);
    assert!(it.last == it.after[1]);

    // What is left of it says so, too, unless it is given more.
    let again = told(folder.path(), &losses, (Some(2), true), 0);
    assert_eq!(again.end.unwrap(), End::Finished { steps: 4 });
    assert_eq!((again.after.len(), again.story.len()), (0, 2));
    assert!(again.last == it.last);
    let more = told(folder.path(), &losses, (Some(3), true), 0);
    assert_eq!(more.end.unwrap(), End::Finished { steps: 8 });
    assert_eq!(more.story.last().unwrap(), "restored 5");
    assert!(more.last == more.after[0], "step 5 was the first of those that followed");
}

#[test]
fn an_interrupted_run_still_knows_its_best_state() {
    let losses = [8.0, 5.0, 6.0, 7.0, 6.0, 6.0, 6.0, 6.0];
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = told(whole.path(), &losses, (None, true), 0);
    assert!(matches!(told(parts.path(), &losses, (None, true), 5).end, Ok(End::Interrupted { step: 5, .. })));
    assert_eq!(kept(parts.path()), [2, 5]);
    assert_eq!(
        RunState::read(&parts.path().join("checkpoint-5")).unwrap().best,
        Some(Best { step: 2, loss: 5.0, since: 3 })
    );
    let rest = told(parts.path(), &losses, (None, true), 0);
    assert_eq!(rest.story.last().unwrap(), "restored 2");
    assert!(rest.last == expected.last, "the parameters differ");
}

#[test]
fn a_best_state_that_is_gone_leaves_its_place_to_a_later_one() {
    let losses = [8.0, 5.0, 6.0, 7.0, 6.0, 6.5, 6.5, 6.5];
    let folder = tempfile::tempdir().unwrap();
    told(folder.path(), &losses, (None, true), 4).end.unwrap();
    std::fs::remove_dir_all(folder.path().join("checkpoint-2")).unwrap();
    let rest = told(folder.path(), &losses, (None, true), 0);
    assert_eq!(rest.story.last().unwrap(), "restored 5");
}

#[test]
fn a_run_whose_time_is_up_saves_and_ends_after_the_step_at_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (data, model) = (rows(8), model());
    let mut optim = optim(model.as_ref());
    let checkpoints = Checkpoints::new(folder.path());
    let mut run = Run::new(config(), (model.as_ref(), None), &mut optim, &data);
    run.deadline = Some(Instant::now());
    let (mut beside, notes) = (nothing_beside, serde_json::Map::new());
    run.saving = Some(Saving { checkpoints: &checkpoints, every: 0, keep: 1, best: false, notes, beside: &mut beside });
    let checkpoint = Some(folder.path().join("checkpoint-1"));
    assert_eq!(run.train(None).unwrap(), End::Interrupted { step: 1, total: 2, checkpoint });
}
