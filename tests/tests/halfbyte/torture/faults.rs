//! Files that cannot be written or read at one call: full disks, broken ones, calls that are interrupted or serve a part.

use super::phase::{NAMES, Phase, remove_hidden};
use e2e::traced::{Calls, Disturbance, watch};
use halfbyte_testkit::{Dice, Night};

/// Errors of the system: no space, a broken disk, a quota, no rights.
const ERRORS: [i32; 4] = [libc::ENOSPC, libc::EIO, libc::EDQUOT, libc::EACCES];

#[test]
fn a_fault_at_any_call_is_a_failure_that_says_so_or_changes_nothing() {
    let phases: Vec<Phase> = NAMES.iter().map(|it| Phase::of(it)).collect();
    for mut dice in Night::new("faults of the disk", 40) {
        let phase = &phases[dice.seed as usize % phases.len()];
        fault(phase, &mut dice);
    }
}

fn fault(phase: &Phase, dice: &mut Dice) {
    let calls = if dice.once_in(3) { Calls::Reading } else { Calls::Changing };
    let harmless = dice.once_in(3);
    let how = match (harmless, dice.below(2)) {
        (true, 0) => Disturbance::Half,
        (true, _) => Disturbance::Interrupted,
        (false, _) => Disturbance::Error(ERRORS[dice.below(ERRORS.len())]),
    };
    let area = phase.area();
    let seed = dice.repeats();
    let at = 1 + dice.below(phase.calls(calls));
    let ended = watch(&mut phase.begin(&area), &phase.root(), calls, Some((at, how)));
    let about = format!("{}: {how:?} at {:?}: {:?}\n{}\n{seed}", phase.name, ended.disturbed, ended.code, ended.stderr);
    if ended.code == Some(0) && ended.stderr.contains("could not be removed") {
        // One checkpoint more than asked for, and a warning.
        return;
    }
    let errors = ended.stderr.lines().filter(|it| it.starts_with("error: ")).count();
    match ended.code {
        Some(0) => {
            assert_eq!(errors, 0, "{about}");
            // What could not be removed goes with the next command that writes there.
            remove_hidden(area.path());
            // A cache that cannot be written costs time alone.
            if phase.name != "tokens" {
                phase.check(&area, &about);
            }
        }
        Some(1 | 2) if !harmless => assert_eq!(errors, 1, "one sentence: {about}"),
        _ => panic!("it does not end so: {about}"),
    }
    phase.check_between(&area, &ended, &seed);
    if ended.code == Some(0) && phase.name != "tokens" {
        return;
    }
    let again = watch(&mut phase.go_on(&area), &phase.root(), calls, None);
    assert_eq!(again.code, Some(0), "with a whole disk it goes on: {}\n{about}", again.stderr);
    phase.check(&area, &about);
}
