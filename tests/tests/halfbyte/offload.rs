//! `--offload-activations`: inputs of recomputed blocks in page-locked host memory, with the bits of a run that keeps them.
#![cfg(target_os = "linux")]

use crate::{cuda::on_gpu, plan::near};
use e2e::{Finetune, Outcome, TinyModel, Work, write_jsonl};

/// A run on the stand-in, with a setting of it.
fn on(run: &Finetune, work: &Work, (setting, value): (&str, &str)) -> Option<Outcome> {
    let mut command = on_gpu(run.clone().flags("--device cuda").args(), &work.path("cache"))?;
    Some(Outcome::of(command.env(setting, value)))
}

const NOTHING: (&str, &str) = ("CUDA_ON_CPU_ORDER", "");

/// Five blocks, rows of several lengths.
fn run(work: &Work) -> Finetune {
    let base = work.model(&TinyModel { layers: 5, ..TinyModel::llama() });
    Finetune::new(&base, &work.rows(), &work.path("out"))
        .flags("--per-device-train-batch-size 2 --gradient-accumulation-steps 2 --lora-dropout 0.1 --max-steps 4")
        .flags("--gradient-checkpointing on --compute-dtype bf16")
}

#[test]
fn inputs_in_host_memory_give_the_same_bits() {
    let work = Work::new();
    let kept = run(&work);
    let Some(outcome) = on(&kept, &work, NOTHING) else { return };
    assert!(outcome.success().stderr.contains("(activations recomputed)"));
    for (name, flags) in [("away", ""), ("paged", "--optim-resident-mib 0.01")] {
        let away = kept.clone().flags("--offload-activations on").flags(flags).output(&work.path(name));
        let said = on(&away, &work, NOTHING).unwrap().success().stderr;
        assert!(said.contains("recomputed from inputs in host memory") && said.contains("page-locked"), "{said}");
        assert_eq!(away.losses(), kept.losses());
        assert!(away.adapter_bytes() == kept.adapter_bytes(), "{name}: the adapters differ");
    }
    // A block that is run again leaves out what nobody reads.
    let all = kept.clone().flags("--gradient-checkpointing off").output(&work.path("all"));
    on(&all, &work, NOTHING).unwrap().success();
    assert!(all.adapter_bytes() == kept.adapter_bytes(), "the adapters differ");
    // Two steps, then two more, each half in another way.
    let half = kept.clone().flags("--offload-activations on --max-steps 2 --lr-scheduler-type constant");
    let half = half.flags("--save-steps 2").output(&work.path("half"));
    on(&half, &work, NOTHING).unwrap().success();
    let rest = half.clone().flags("--resume --max-steps 4 --offload-activations off");
    on(&rest, &work, NOTHING).unwrap().success();
    let whole = kept.flags("--lr-scheduler-type constant").output(&work.path("whole"));
    on(&whole, &work, NOTHING).unwrap().success();
    assert!(rest.adapter_bytes() == whole.adapter_bytes(), "a resumed run differs");
}

/// Blocks many and rows long enough that their inputs are what a run holds.
fn deep(work: &Work) -> Finetune {
    let rows = work.path("alike.jsonl");
    let text = "the old cat sat on the red mat and then slept all day ".repeat(8);
    write_jsonl(&rows, &[Some(&*text); 32]);
    let base = work.model(&TinyModel { layers: 24, ..TinyModel::llama() });
    Finetune::new(&base, &rows, &work.path("out"))
        .flags("--max-length 64 --per-device-train-batch-size 32 --max-steps 1 --no-eval-before")
}

fn mib(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap() / f64::from(1 << 20)
}

#[test]
fn auto_asks_host_memory_only_where_nothing_else_fits_and_the_plan_holds() {
    let work = Work::new();
    let kept = deep(&work).flags("--gradient-checkpointing on --offload-activations off").output(&work.path("kept"));
    let Some(outcome) = on(&kept, &work, NOTHING) else { return };
    outcome.success();
    let away = deep(&work);
    let least = |run: &Finetune| run.summary()["planned_bytes"].as_u64().unwrap();
    // Where there is less memory than for that, the outputs of cheap ops and of the last block are not kept.
    let (kept_bytes, limit) = (least(&kept), (least(&kept) - 1).to_string());
    let lean = kept.clone().output(&work.path("lean"));
    on(&lean, &work, ("CUDA_ON_CPU_MEMORY", &limit)).unwrap().success();
    assert!(lean.adapter_bytes() == kept.adapter_bytes());
    let limit = (least(&lean) - 1).to_string();
    let refused = deep(&work).flags("--offload-activations off").output(&work.path("refused"));
    let refused = on(&refused, &work, ("CUDA_ON_CPU_MEMORY", &limit)).unwrap();
    refused.user_error(&["--offload-activations on would need", "and fit"]);
    let said = on(&away, &work, ("CUDA_ON_CPU_MEMORY", &limit)).unwrap().success().stderr;
    assert!(said.contains("recomputed from inputs in host memory"), "{said}");
    assert!(least(&away) + (24 - 4) * 32 * 64 * 32 * 4 < kept_bytes, "{} of {kept_bytes}", least(&away));
    near("away", mib(&away.summary()["planned_bytes"]), away.summary()["peak_gpu_mib"].as_f64().unwrap());
    assert_eq!(mib(&away.summary()["plan"]["page_locked"]), 24.0 * 16.0);
    assert!(away.adapter_bytes() == kept.adapter_bytes());
}

#[test]
fn host_memory_that_is_refused_is_an_error_that_says_what_helps() {
    let work = Work::new();
    let away = run(&work).flags("--offload-activations on");
    // Room for the ring of uploads and two of five inputs.
    let Some(outcome) = on(&away, &work, ("CUDA_ON_CPU_HOST_MEMORY", "53000000")) else { return };
    outcome.failure(&["page-locked host memory", "--offload-activations off", "ulimit -l"]);
    assert!(!away.folder().join("adapter_model.safetensors").exists(), "no result is left");
}

#[test]
fn a_cpu_says_that_it_changes_nothing_and_a_contradiction_is_refused() {
    let work = Work::new();
    let plain = work.finetune().flags("--max-steps 2");
    plain.done();
    let away = plain.clone().flags("--offload-activations").output(&work.path("away"));
    let said = away.run().success().stderr;
    assert!(said.contains("--offload-activations changes nothing on a CPU"), "{said}");
    assert!(away.adapter_bytes() == plain.adapter_bytes());
    let both = plain.flags("--offload-activations on --gradient-checkpointing off").output(&work.path("both"));
    both.run().user_error(&["--gradient-checkpointing off recomputes none"]);
}
