//! Matrices decoded beside the product before them, and whatever else goes on beside the compute stream: the bits of a run in which
//! nothing does, when such work is done as late as its events allow, and as early.
#![cfg(target_os = "linux")]

use crate::cuda::on_gpu;
use e2e::{Finetune, Outcome, TinyModel, Work};

/// A run on the stand-in: whether it works ahead, and when streams beside the first one do their work.
fn on(run: &Finetune, work: &Work, (ahead, streams): (&str, &str)) -> Option<Outcome> {
    let mut command = on_gpu(run.clone().flags("--device cuda").args(), &work.path("cache"))?;
    Some(Outcome::of(command.env("HALFBYTE_CUDA_AHEAD", ahead).env("CUDA_ON_CPU_STREAMS", streams)))
}

/// Gradients of different lengths of rows, so that workspaces come to lie in memory that was something else a moment ago.
fn run(work: &Work) -> Finetune {
    let base = work.model(&TinyModel { layers: 3, ..TinyModel::llama() });
    Finetune::new(&base, &work.rows(), &work.path("out"))
        .flags("--per-device-train-batch-size 2 --gradient-accumulation-steps 2 --max-steps 4 --compute-dtype bf16")
}

#[test]
fn what_goes_on_beside_does_not_show() {
    let work = Work::new();
    let ways = [
        ("kept", "--gradient-checkpointing off"),
        ("recomputed", "--gradient-checkpointing on --lora-dropout 0.1"),
        // Half of the pages of optimizer state are there.
        ("away", "--gradient-checkpointing on --offload-activations on --optim-resident-mib 0.03"),
        ("int8", "--quant int8 --gradient-checkpointing off"),
    ];
    for (name, flags) in ways {
        let alone = run(&work).flags(flags).output(&work.path(&format!("{name}-alone")));
        let Some(outcome) = on(&alone, &work, ("off", "late")) else { return };
        outcome.success();
        for (ahead, streams) in [("on", "late"), ("on", "early"), ("off", "early")] {
            let other = alone.clone().output(&work.path(&format!("{name}-{ahead}-{streams}")));
            on(&other, &work, (ahead, streams)).unwrap().success();
            assert_eq!(other.losses(), alone.losses(), "{name}, {ahead}, {streams}");
            assert!(other.adapter_bytes() == alone.adapter_bytes(), "{name}, {ahead}, {streams}: the adapters differ");
        }
    }
}
