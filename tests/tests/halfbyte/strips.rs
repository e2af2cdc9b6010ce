//! Batches of more rows than an MLP takes at a time.

use e2e::{Finetune, TinyModel, Work, write_jsonl};

/// 16,640 tokens a batch, which are three strips.
fn long(work: &Work) -> Finetune {
    let rows = work.path("long.jsonl");
    let texts: Vec<String> = (0..260)
        .map(|i| "the old cat sat on the red mat and then slept all day ".repeat(8)[4 * (i % 7)..].to_owned())
        .collect();
    write_jsonl(&rows, &texts.iter().map(|it| Some(&**it)).collect::<Vec<_>>());
    Finetune::new(&work.model(&TinyModel::llama()), &rows, &work.path("out"))
        .flags("--max-length 64 --per-device-train-batch-size 260 --num-train-epochs 2 --max-steps 2 --no-eval-before --profile")
}

fn calls(run: &Finetune, op: &str, phase: &str) -> u64 {
    let text = std::fs::read_to_string(run.folder().join("profile.json")).unwrap();
    let lines: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let found = lines.iter().find(|it| it["op"] == op && it["phase"] == phase);
    found.and_then(|it| it["calls"].as_u64()).unwrap_or_else(|| panic!("{op}, {phase}: {text}"))
}

#[track_caller]
fn near(got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((got / wanted - 1.0).abs() < 2e-6, "{got} in strips, {wanted} without");
    }
}

#[test]
fn a_long_batch_in_strips_has_the_losses_of_one_without() {
    let work = Work::new();
    let whole = long(&work).flags("--gradient-checkpointing off").output(&work.path("whole"));
    whole.done();
    let strips = long(&work).flags("--gradient-checkpointing on");
    strips.done();
    near(&strips.losses(), &whole.losses());
    assert_eq!(strips.losses().len(), 2);
    // A block goes back through one attention: beside itself there are its strips, each of which is run again.
    let blocks = calls(&strips, "attention", "backward");
    assert_eq!(calls(&strips, "checkpoint", "backward"), 2 * blocks);
    let gates = calls(&strips, "gated", "forward");
    assert!(gates >= 2 * 3 * blocks && gates.is_multiple_of(3 * blocks), "three strips in each pass: {gates}");
    let again = strips.clone().flags("--threads 1").output(&work.path("again"));
    again.done();
    assert!(again.adapter_bytes() == strips.adapter_bytes(), "threads do not show");
    // Each strip has masks of its own, which are the same in both passes: else the loss would not fall.
    let dropped =
        strips.clone().flags("--lora-dropout 0.2 --num-train-epochs 4 --max-steps 4").output(&work.path("dropped"));
    dropped.done();
    let losses = dropped.losses();
    assert!(losses.last() < losses.first(), "{losses:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_gpu_takes_the_same_strips() {
    let work = Work::new();
    let here = long(&work).flags("--gradient-checkpointing on --max-steps 1").output(&work.path("here"));
    here.done();
    let there = here.clone().flags("--offload-activations on --device cuda").output(&work.path("there"));
    let Some(mut command) = crate::cuda::on_gpu(there.args(), &work.path("cache")) else { return };
    e2e::Outcome::of(&mut command).success();
    near(&there.losses(), &here.losses());
    let planned = there.summary()["planned_bytes"].as_f64().unwrap() / f64::from(1 << 20);
    crate::plan::near("strips", planned, there.summary()["peak_gpu_mib"].as_f64().unwrap());
    assert_eq!(calls(&there, "checkpoint", "backward"), 2 * calls(&there, "attention", "backward"));
}
