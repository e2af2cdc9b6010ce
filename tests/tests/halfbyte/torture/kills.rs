//! Killed, and killed again while it goes on, with and without a loss of power.

use super::phase::{NAMES, Phase};
use e2e::traced::{Calls, Disturbance, Watched, watch};
use halfbyte_testkit::{Dice, Night};
use std::{process::Command, thread, time::Duration};

#[test]
fn a_killed_training_loses_nothing_that_was_saved() {
    killed("kills of trainings", &["adapter", "best", "paged", "full"], 48);
}

#[test]
fn a_killed_command_leaves_the_old_model_or_the_new() {
    killed("kills of quantize, merge, token cache and pull", &["quantize", "merge", "tokens", "pull"], 60);
}

#[test]
fn what_a_command_said_was_done_outlives_a_loss_of_power() {
    for name in NAMES {
        let phase = Phase::of(name);
        let area = phase.area();
        let mut ended = watch(&mut phase.begin(&area), &phase.root(), Calls::Changing, None);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        ended.lose_power(true);
        phase.check(&area, &format!("{name}, without power after its end"));
    }
}

fn killed(what: &'static str, names: &[&str], usual: u64) {
    let phases: Vec<Phase> = names.iter().map(|it| Phase::of(it)).collect();
    for mut dice in Night::new(what, usual) {
        let phase = &phases[dice.seed as usize % phases.len()];
        kill(phase, &mut dice);
    }
}

fn kill(phase: &Phase, dice: &mut Dice) {
    let area = phase.area();
    let seed = dice.repeats();
    if dice.once_in(6) {
        at_an_instant(&mut phase.begin(&area), dice);
    } else {
        // A little more than there are, so that it is left alone at times.
        let at = 1 + dice.below(phase.calls(Calls::Changing) + 1);
        disturbed(phase, &mut phase.begin(&area), (&area, at), dice, &seed);
    }
    while dice.once_in(3) {
        let at = 1 + dice.below(phase.calls(Calls::Changing));
        disturbed(phase, &mut phase.go_on(&area), (&area, at), dice, &seed);
    }
    let ended = watch(&mut phase.go_on(&area), &phase.root(), Calls::Changing, None);
    let about = format!("{:?}\n{}\n{seed}", ended.code, ended.stderr);
    assert!(ended.code == Some(0) || is_over(&ended), "{}: it goes on: {about}", phase.name);
    phase.check(&area, &about);
}

fn is_over(ended: &Watched) -> bool {
    ended.code == Some(2) && ended.stderr.contains("ended already")
}

fn disturbed(
    phase: &Phase,
    command: &mut Command,
    (area, at): (&super::phase::Area, usize),
    dice: &mut Dice,
    seed: &str,
) {
    let how = if dice.once_in(3) { Disturbance::HalfAndKill } else { Disturbance::Kill };
    let mut ended = watch(command, &phase.root(), Calls::Changing, Some((at, how)));
    let well = ended.code.is_none() || ended.code == Some(0) || is_over(&ended);
    assert!(well, "{}: {:?} after {:?}\n{}\n{seed}", phase.name, ended.code, ended.disturbed, ended.stderr);
    match dice.below(3) {
        0 => {}
        it => ended.lose_power(it == 2),
    }
    phase.check_between(area, &ended, seed);
}

/// At a time that is nobody's, also while it computes.
fn at_an_instant(command: &mut Command, dice: &mut Dice) {
    let mut child = command.spawn().expect("halfbyte starts");
    thread::sleep(Duration::from_millis(dice.below(250) as u64));
    child.kill().expect("a child");
    child.wait().expect("a child");
}
