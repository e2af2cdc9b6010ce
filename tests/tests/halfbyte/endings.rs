//! When a run ends, with which state, and when it measures, saves and logs on the way.

use e2e::{Finetune, Work};
use serde_json::Value;
use std::fs;

/// Learns its rows by heart while rows that are nothing like them get worse: the held-out loss falls, if at all, for some steps.
fn overfitting(work: &Work) -> Finetune {
    let held_out = work.path("held-out.jsonl");
    fs::write(&held_out, "{\"text\": \"zz yy xx ww\"}\n{\"text\": \"qq pp oo\"}\n").unwrap();
    work.finetune().path("--eval-data", held_out).flags("--eval-steps 1 --max-steps 10 --learning-rate 5e-2")
}

fn eval_losses(run: &Finetune) -> Vec<f64> {
    run.metrics().iter().filter_map(|it| it["eval_loss"].as_f64()).collect()
}

/// The step with the lowest loss, the first of equal ones.
fn lowest(losses: &[f64]) -> usize {
    1 + (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap()
}

#[test]
fn the_best_state_is_the_result_where_it_is_asked_for() {
    let work = Work::new();
    let last = overfitting(&work);
    last.done();
    let losses = eval_losses(&last);
    let best = lowest(&losses);
    assert!(best < losses.len(), "the rows must overfit: {losses:?}");

    let run = overfitting(&work).flags("--load-best-model-at-end --save-steps 4").output(&work.path("best"));
    let outcome = run.run().success();
    assert!(outcome.stderr.contains(&format!("the result is the state after step {best}")), "{outcome}");
    assert_eq!(eval_losses(&run), losses, "it trains as it would without");
    let same_length =
        overfitting(&work).flags(&format!("--eval-steps 0 --max-steps {best}")).output(&work.path("short"));
    same_length.done();
    assert!(run.adapter_bytes() == same_length.adapter_bytes(), "the adapter is that of step {best}");
    let summary = run.summary();
    assert_eq!(summary["best"]["step"], best);
    assert_eq!(summary["eval_loss_after"], summary["best"]["loss"], "measured again with what was restored");
    assert!(run.folder().join(format!("checkpoint-{best}")).exists(), "it is kept");
}

#[test]
fn a_run_that_gets_no_better_ends_and_says_so() {
    let work = Work::new();
    let run = overfitting(&work).flags("--early-stopping-patience 2 --save-steps 0");
    let outcome = run.run().success();
    let losses = eval_losses(&run);
    let best = lowest(&losses);
    assert!(losses.len() < 10 && losses.len() == best + 2, "{losses:?}");
    assert!(outcome.stderr.contains(&format!("stopping after step {} of 10", best + 2)), "{outcome}");
    assert!(outcome.stderr.contains(&format!("the state after step {best}")), "{outcome}");
    assert_eq!(run.summary()["steps"], best + 2);
    run.clone().flags("--resume").run().user_error(&["ended already", "--early-stopping-patience"]);

    // A wait that asks for more than anything brings is over first.
    let hasty = overfitting(&work).flags("--early-stopping-patience 1 --early-stopping-threshold 100");
    let hasty = hasty.output(&work.path("hasty"));
    hasty.done();
    assert_eq!(eval_losses(&hasty).len(), 2);
}

#[test]
fn a_run_whose_time_is_up_saves_and_says_how_to_go_on() {
    let work = Work::new();
    let whole = work.finetune().output(&work.path("whole"));
    whole.done();
    let run = work.finetune().flags("--max-minutes 0.0001");
    run.run().ends(130, &["--max-minutes 0.0001", "stopped after step 1 of 4", "checkpoint-1", "--resume"]);
    run.clone().flags("--resume").without(&["--max-minutes"]).done();
    assert!(run.adapter_bytes() == whole.adapter_bytes(), "the adapters differ");
}

#[test]
fn shares_of_the_run_and_times_an_epoch_are_steps() {
    let work = Work::new();
    let steps = |flags: &str, key: &str| -> Vec<u64> {
        let held_out = work.rows();
        let run = work
            .finetune()
            .path("--eval-data", held_out)
            .flags(flags)
            .output(&work.path(&flags.replace(['/', ' '], "_")));
        let run = run.flags("--num-train-epochs 2 --save-total-limit 9").without(&["--max-steps"]);
        run.done();
        let saved = |step: u64| run.folder().join(format!("checkpoint-{step}")).exists();
        match key {
            "saved" => (1..=99).filter(|it| saved(*it)).collect(),
            _ => run
                .metrics()
                .iter()
                .filter(|it| it[key] != Value::Null)
                .map(|it| it["step"].as_u64().unwrap())
                .collect(),
        }
    };
    let all = steps("--logging-steps 1", "step");
    let (total, per_epoch) = (all.len() as u64, all.len() as u64 / 2);
    assert!(per_epoch > 2, "{all:?}");
    assert_eq!(steps("--save-steps epoch", "saved"), [per_epoch, total]);
    assert_eq!(steps("--eval-steps 1/epoch", "eval_loss"), [per_epoch, total]);
    assert_eq!(steps("--eval-steps 0.5", "eval_loss"), [per_epoch, total]);
    assert_eq!(steps("--logging-steps epoch --logging-first-step", "step"), [1, per_epoch, total]);
}

#[test]
fn without_a_terminal_lines_tell_how_far_the_run_is() {
    let outcome = Work::new().finetune().run().success();
    let lines: Vec<&str> = outcome.stderr.lines().filter(|it| it.starts_with("step ")).collect();
    assert!(lines.len() >= 2 && lines[0].starts_with("step 1/4, epoch ") && lines[0].contains(" left"), "{outcome}");
    assert!(lines.last().unwrap().starts_with("step 4/4"), "{outcome}");
}

#[test]
fn the_rate_falls_by_the_schedule_and_its_arguments() {
    let work = Work::new();
    let config = work.path("run.toml");
    fs::write(&config, "lr_scheduler_kwargs = { num_cycles = 2 }\n").unwrap();
    let run = work.finetune().path("--config", config).flags("--lr-scheduler-type cosine_with_restarts");
    run.done();
    let rates: Vec<f64> = run.metrics().iter().map(|it| it["learning_rate"].as_f64().unwrap()).collect();
    let expected = [1e-2, 5e-3, 1e-2, 5e-3];
    assert!(rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");
}
