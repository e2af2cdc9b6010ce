//! Steps that are started on a GPU as one graph: the bits of a run in which each kernel is started by itself.
#![cfg(target_os = "linux")]

use crate::cuda::on_gpu;
use e2e::{Finetune, Outcome, TinyModel, Work, write_jsonl};
use std::ffi::OsString;

/// Eight steps of one shape, since every row is longer than what is taken of it; held-out losses and checkpoints between them.
fn run(work: &Work) -> Finetune {
    let rows = work.path("alike.jsonl");
    let texts: Vec<String> =
        (0..40).map(|i| "the old cat sat on the red mat and slept all day ".repeat(4)[i % 9..].to_owned()).collect();
    write_jsonl(&rows, &texts.iter().map(|it| Some(&**it)).collect::<Vec<_>>());
    let base = work.model(&TinyModel { layers: 2, ..TinyModel::llama() });
    Finetune::new(&base, &rows, &work.path("out")).flags(
        "--per-device-train-batch-size 2 --max-length 16 --max-steps 8 --eval-split 0.2 --eval-steps 3 --save-steps 4 --compute-dtype bf16",
    )
}

fn on(run: &Finetune, work: &Work, settings: &[(&str, &str)]) -> Option<Outcome> {
    let mut command = on_gpu(run.clone().flags("--device cuda").args(), &work.path("cache"))?;
    Some(Outcome::of(command.envs(settings.iter().copied())))
}

fn graphs(run: &Finetune) -> u64 {
    run.summary()["gpu_graphs"].as_u64().unwrap()
}

#[test]
fn a_run_of_graphs_has_the_bits_of_one_without() {
    let work = Work::new();
    let ways = [
        ("kept", "--gradient-checkpointing off"),
        ("recomputed", "--gradient-checkpointing on --gradient-accumulation-steps 2 --max-steps 7"),
        ("int8", "--quant int8 --gradient-checkpointing off --optim-resident-mib 0.01"),
    ];
    for (name, flags) in ways {
        let alone = run(&work).flags(flags).output(&work.path(&format!("{name}-alone")));
        let Some(outcome) = on(&alone, &work, &[("HALFBYTE_CUDA_GRAPH", "off")]) else { return };
        outcome.success();
        assert_eq!(graphs(&alone), 0, "{name}");
        for (way, settings) in [
            ("late", &[][..]),
            ("early", &[("CUDA_ON_CPU_STREAMS", "early")]),
            ("none-ahead", &[("HALFBYTE_CUDA_AHEAD", "off")]),
        ] {
            let other = alone.clone().output(&work.path(&format!("{name}-{way}")));
            on(&other, &work, settings).unwrap().success();
            assert!(graphs(&other) >= 3, "{name}, {way}: {} graphs", graphs(&other));
            assert_eq!(other.losses(), alone.losses(), "{name}, {way}");
            assert!(other.adapter_bytes() == alone.adapter_bytes(), "{name}, {way}: the adapters differ");
            let (planned, peak) = (other.summary()["planned_bytes"].clone(), other.summary()["peak_gpu_mib"].clone());
            crate::plan::near(name, planned.as_f64().unwrap() / f64::from(1 << 20), peak.as_f64().unwrap());
        }
    }
}

/// A driver may make graphs that do something else than what was asked for, or none: neither shows in the result.
#[test]
fn a_run_does_not_depend_on_the_driver_s_graphs() {
    let work = Work::new();
    let alone = run(&work).output(&work.path("alone"));
    let Some(outcome) = on(&alone, &work, &[("HALFBYTE_CUDA_GRAPH", "off")]) else { return };
    outcome.success();
    for (how, warned, expected) in [("torn", true, 1), ("none", false, 0)] {
        let other = alone.clone().output(&work.path(how));
        let said = on(&other, &work, &[("CUDA_ON_CPU_GRAPHS", how)]).unwrap().success().stderr;
        assert_eq!(said.contains("gave another result than by itself"), warned, "{how}: {said}");
        assert_eq!(graphs(&other), expected, "{how}");
        assert!(other.adapter_bytes() == alone.adapter_bytes(), "{how}: the adapters differ");
    }
}

/// The time of each op is to be had only of kernels that are started by themselves.
#[test]
fn a_profile_is_of_kernels_by_themselves() {
    let work = Work::new();
    let profiled = run(&work).flags("--profile").output(&work.path("profiled"));
    let Some(outcome) = on(&profiled, &work, &[]) else { return };
    outcome.success();
    assert_eq!(graphs(&profiled), 0);
}

#[test]
fn what_is_generated_by_graphs_is_what_is_generated_without() {
    let work = Work::new();
    let base = work.model(&TinyModel { layers: 2, ..TinyModel::llama() });
    let text = |settings: &[(&str, &str)]| {
        let mut args: Vec<OsString> =
            ["generate", "--device", "cuda", "--quant", "nf4", "--max-new-tokens", "40", "--prompt", "the old cat"]
                .map(OsString::from)
                .to_vec();
        args.extend(["--prompt".into(), "a".into(), "--model".into(), base.clone().into_os_string()]);
        let mut command = on_gpu(args, &work.path("cache"))?;
        Some(Outcome::of(command.envs(settings.iter().copied())).success().stdout)
    };
    let Some(alone) = text(&[("HALFBYTE_CUDA_GRAPH", "off")]) else { return };
    for settings in [&[][..], &[("CUDA_ON_CPU_STREAMS", "early")], &[("CUDA_ON_CPU_GRAPHS", "torn")]] {
        assert_eq!(text(settings).unwrap(), alone, "{settings:?}");
    }
}
