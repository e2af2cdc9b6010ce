//! Runs that fail on the way: what was saved before stays whole, and nothing that looks like a result is left.

use e2e::{Finetune, Outcome, Tensors, Work, halfbyte};
use std::{fs, path::Path, process::Command};

/// Runs with a limit on the size of files, as if the disk were full beyond it; writes fail instead of killing the process.
fn run_with_file_limit(run: &Finetune, kib: usize) -> Outcome {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\""), "bash"]);
    command.arg(halfbyte().get_program()).args(run.args());
    Outcome::of(&mut command)
}

fn drafts(folder: &Path) -> usize {
    fs::read_dir(folder)
        .unwrap()
        .filter(|it| it.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tmp"))
        .count()
}

#[test]
fn a_full_disk_while_saving_a_checkpoint_leaves_the_earlier_one_whole() {
    let work = Work::new();
    let run = work.finetune().flags("--rank 16 --save-steps 2 --max-steps 2");
    let folder = run.done();
    let before = work.contents(&folder.join("checkpoint-2"));
    let more = run.flags("--resume --max-steps 6");
    let outcome = run_with_file_limit(&more, 16).failure(&["run"]);
    assert!(
        outcome.stderr.contains("too large") || outcome.stderr.contains("os error"),
        "the system's reason: {outcome}"
    );
    assert!(work.contents(&folder.join("checkpoint-2")) == before, "the earlier checkpoint is as it was");
    assert!(!folder.join("checkpoint-4").exists());
    assert_eq!(drafts(&folder), 0, "nothing half-written is left");

    more.done();
    let whole = work.finetune().flags("--rank 16 --save-steps 2 --max-steps 6").output(&work.path("whole"));
    whole.done();
    assert!(whole.adapter_bytes() == more.adapter_bytes(), "with room again, it goes on as if nothing had happened");
}

#[test]
fn a_full_disk_at_the_end_leaves_no_half_adapter() {
    let work = Work::new();
    let run = work.finetune().flags("--rank 16 --save-steps 0");
    run_with_file_limit(&run, 16).failure(&["adapter_model.safetensors"]);
    let folder = work.path("run");
    assert!(!folder.join("adapter_model.safetensors").exists() && !folder.join("summary.json").exists());
    assert_eq!(drafts(&folder), 0);
}

#[test]
fn a_spill_file_that_does_not_fit_is_a_failure_that_says_so() {
    let work = Work::new();
    let run = work.finetune().flags("--rank 16 --optim-resident-mib 0.03125");
    run_with_file_limit(&run, 16).failure(&["spill"]);
}

#[test]
fn a_folder_that_cannot_be_made_is_a_failure() {
    let work = Work::new();
    fs::write(work.path("file"), "in the way").unwrap();
    let run = work.finetune().output(&work.path("file/run"));
    run.run().failure(&["file/run", "cannot be made"]);
}

#[test]
fn a_learning_rate_of_zero_is_an_error_since_nothing_moved() {
    let work = Work::new();
    work.finetune().flags("--learning-rate 0").run().failure(&["no trainable tensor changed", "--learning-rate 0"]);
    assert!(!work.path("run").join("adapter_model.safetensors").exists(), "what did not train is not saved");
}

#[test]
fn a_diverging_loss_stops_the_run_with_the_checkpoint_intact() {
    let work = Work::new();
    // The first step has a learning rate of zero, so that a checkpoint exists before anything goes wrong.
    let run = work.finetune().flags("--learning-rate 1e30 --lr-scheduler-type linear --warmup-steps 1 --save-steps 1 --max-steps 20 --save-total-limit 20");
    let outcome = run.run().failure(&["training stopped at step", "intact", "--learning-rate"]);
    let folder = work.path("run");
    assert!(!folder.join("adapter_model.safetensors").exists() && !folder.join("summary.json").exists(), "{outcome}");
    let first = Tensors::read(&folder.join("checkpoint-1/adapter_model.safetensors"));
    assert!(first.is_finite() && first.largest() < 1.0);
    assert_eq!(drafts(&folder), 0);
}
