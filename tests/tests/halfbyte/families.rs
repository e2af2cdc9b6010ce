//! Every family of models, from end to end: what says how one differs from another has to be enough for every command.

#![cfg(target_os = "linux")]

use crate::cuda::on_gpu;
use e2e::{Family, Finetune, Outcome, TinyModel, Work, run};
use std::{ffi::OsString, path::Path};

/// LLaMA and GPT-Neo are what all other tests go through.
fn families() -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(|it| !matches!(it, Family::Llama | Family::GptNeo))
}

fn arguments(command: &str, paths: &[(&str, &Path)]) -> Vec<OsString> {
    let mut args: Vec<OsString> = command.split_whitespace().map(OsString::from).collect();
    for (flag, path) in paths {
        args.extend([OsString::from(flag), path.into()]);
    }
    args
}

#[test]
fn a_quantised_base_trains_merges_and_is_inspected() {
    for family in families() {
        let work = Work::new();
        let model = TinyModel::of(family);
        let base = work.model(&model);
        let run_ = Finetune::new(&base, &work.rows(), &work.path("run")).flags("--max-steps 20");
        let adapter = run_.done();
        let (with, without) = (work.loss(&base, Some(&adapter), ""), work.loss(&base, None, "--quant nf4"));
        assert!(without - with > 0.5, "{family:?}: {without} to {with}");
        let stored = work.path("stored");
        run(arguments("quantize --quant nf4", &[("--model", &base), ("--output", &stored)])).success();
        assert_eq!(work.loss(&stored, None, ""), without, "{family:?}: as bitsandbytes stores it");
        let merged = work.path("merged");
        let paths = [("--model", &*base), ("--adapter", &*adapter), ("--output", &*merged)];
        run(arguments("merge --dtype f32", &paths)).success();
        let loss = work.loss(&merged, None, "");
        assert!((loss - with).abs() < 4e-4, "{family:?}: merged {loss}, base and adapter {with}");
        let said = run(arguments("inspect --json --target-modules all-linear --rank 8", &[("--model", &base)])).json();
        let adapter = model.adapter_parameters(8);
        assert_eq!(said["trainable_parameters"], adapter);
        assert_eq!(said["total_parameters"], model.parameters() + adapter);
        let text = run(arguments("inspect", &[("--model", &base)])).success().stdout;
        assert!(text.contains("attn") || text.contains("attention"), "{text}");
    }
}

/// Longer than the windows.
const PROMPT: &str = "the old cat sat on the red mat and then";

#[test]
fn a_gpu_trains_and_generates_as_the_cpu_does() {
    for family in families() {
        let work = Work::new();
        let base = work.model(&TinyModel::of(family));
        let cpu = Finetune::new(&base, &work.rows(), &work.path("cpu")).flags("--max-steps 6");
        let adapter = cpu.done();
        let gpu = cpu.clone().output(&work.path("gpu")).flags("--device cuda");
        let Some(mut command) = on_gpu(gpu.args(), &work.path("cache")) else { return };
        Outcome::of(&mut command).success();
        for (got, wanted) in gpu.losses().iter().zip(cpu.losses()) {
            assert!((got / wanted - 1.0).abs() < 2e-6, "{family:?}: {got} on the GPU, {wanted} on the CPU");
        }
        let ask = |device: &str| {
            let paths = [("--model", &*base), ("--adapter", &*adapter)];
            // In f32: numbers of 16 bits have many near ties among so few words.
            let mut args =
                arguments(&format!("generate --compute-dtype f32 --max-new-tokens 20 --device {device}"), &paths);
            args.extend(["--prompt".into(), PROMPT.into()]);
            args
        };
        let text = run(ask("cpu")).success().stdout;
        let on_gpu = Outcome::of(&mut on_gpu(ask("cuda"), &work.path("cache")).unwrap()).success().stdout;
        assert_eq!(text, on_gpu, "{family:?}");
    }
}
