//! `--device cuda` through the binary, on the CPU in the guise of a GPU: the unmodified path, against the same run on the CPU.
#![cfg(target_os = "linux")]

use crate::packing::{one_step, same_step};
use e2e::{Finetune, Outcome, TinyModel, Work, halfbyte};
use halfbyte_testkit::cuda::libraries;
use std::{ffi::OsString, fs, path::Path, process::Command};

/// A command on the stand-in device; `None` where it cannot be built.
pub(crate) fn on_gpu(args: impl IntoIterator<Item = OsString>, cache: &Path) -> Option<Command> {
    let mut command = halfbyte();
    command.args(args).env_remove("CUDA_VISIBLE_DEVICES").env("LD_LIBRARY_PATH", libraries()?);
    command.env("HALFBYTE_CACHE", cache);
    Some(command)
}

fn train(run: &Finetune, work: &Work) -> Option<Outcome> {
    Some(Outcome::of(&mut on_gpu(run.clone().flags("--device cuda").args(), &work.path("cache"))?))
}

#[track_caller]
fn near(what: &str, got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((got / wanted - 1.0).abs() < 2e-6, "{what}: {got} on the GPU, {wanted} on the CPU");
    }
}

#[test]
fn every_kind_of_training_has_the_losses_of_the_cpu() {
    let kinds = [
        (TinyModel::llama(), "--quant nf4"),
        (
            TinyModel { attention_bias: true, tied: false, ..TinyModel::llama() },
            "--quant fp4 --double-quant off --lora-dropout 0.2",
        ),
        (TinyModel::gpt_neo(), "--quant int8 --method qlora"),
        (TinyModel::llama(), "--method lora --quant none --use-dora --gradient-checkpointing on"),
        (TinyModel::gpt_neo(), "--method lora --quant none --bias all --gradient-accumulation-steps 2"),
        (
            TinyModel { tied: false, ..TinyModel::llama() },
            "--quant int4 --modules-to-save lm_head,norm --target-modules q_proj,embed_tokens",
        ),
    ];
    for (model, flags) in kinds {
        let work = Work::new();
        let base = work.model(&model);
        let run = Finetune::new(&base, &work.rows(), &work.path("cpu"))
            .without(&["--method"])
            .flags("--max-steps 6")
            .flags(flags);
        run.done();
        let other = run.clone().output(&work.path("gpu"));
        let Some(outcome) = train(&other, &work) else { return };
        let said = outcome.success().stderr;
        assert!(said.contains("computing on cuda:0"), "{said}");
        near(flags, &other.losses(), &run.losses());
    }
}

#[test]
fn packed_and_single_rows_give_the_same_loss_and_gradients() {
    for model in [TinyModel::llama(), TinyModel::gpt_neo()] {
        let work = Work::new();
        let alone =
            one_step(&work, &model, "alone").flags("--per-device-train-batch-size 1 --gradient-accumulation-steps 8");
        let Some(outcome) = train(&alone, &work) else { return };
        outcome.success();
        let packed = one_step(&work, &model, "packed").flags("--packing on");
        train(&packed, &work).unwrap().success();
        same_step(&format!("{:?}", model.family), &packed, &alone);
    }
}

#[test]
fn training_a_whole_model_in_bf16_stays_near() {
    let work = Work::new();
    let run = work.finetune().without(&["--method", "--quant", "--rank", "--lora-alpha", "--target-modules"]);
    let run = run.flags("--method full --compute-dtype bf16 --learning-rate 1e-3");
    run.done();
    let other = run.clone().output(&work.path("gpu"));
    let Some(outcome) = train(&other, &work) else { return };
    outcome.success();
    for (got, wanted) in other.losses().iter().zip(run.losses()) {
        assert!((got / wanted - 1.0).abs() < 0.02, "{got} {wanted}");
    }
}

#[test]
fn a_paged_optimizer_and_a_resumed_run_give_the_same_bits() {
    for optim in ["adamw_torch", "adamw_8bit"] {
        let work = Work::new();
        // Most matrices of 4096 numbers or more, which is where 8 bits begin.
        let cpu = work.finetune().flags(&format!("--rank 128 --max-steps 6 --optim {optim}"));
        let whole = cpu.clone().output(&work.path("whole"));
        let Some(outcome) = train(&whole, &work) else { return };
        outcome.success();
        cpu.done();
        for (got, wanted) in whole.losses().iter().zip(cpu.losses()) {
            // A moment between two codes may take either.
            assert!((got / wanted - 1.0).abs() < 1e-4, "{optim}: {got} {wanted}");
        }
        let paged = whole.clone().flags("--optim-resident-mib 0.01").output(&work.path("paged"));
        train(&paged, &work).unwrap().success();
        assert!(paged.summary()["optimizer_pages"]["bytes_spilled"].as_u64().unwrap() > 0);
        assert!(paged.adapter_bytes() == whole.adapter_bytes(), "{optim}: paging does not show");
        let first = whole.clone().flags("--max-steps 4 --save-steps 4").output(&work.path("parts"));
        train(&first, &work).unwrap().success();
        train(&first.clone().flags("--max-steps 6 --resume"), &work).unwrap().success();
        assert!(first.adapter_bytes() == whole.adapter_bytes(), "{optim}: a pause does not show");
    }
}

#[test]
fn the_order_of_blocks_and_warps_does_not_show() {
    let work = Work::new();
    let mut adapters = Vec::new();
    for order in ["forward", "reverse", "rotate"] {
        let run = work.finetune().output(&work.path(order)).flags("--device cuda");
        let Some(mut command) = on_gpu(run.args(), &work.path("cache")) else { return };
        Outcome::of(command.env("CUDA_ON_CPU_ORDER", order)).success();
        adapters.push(run.adapter_bytes());
    }
    assert!(adapters[0] == adapters[1] && adapters[0] == adapters[2]);
}

#[test]
fn evaluation_and_generation_say_the_same() {
    let work = Work::new();
    for model in [TinyModel::llama(), TinyModel::gpt_neo()] {
        let base = work.model(&model);
        let adapter = Finetune::new(&base, &work.rows(), &work.path("run")).flags("--overwrite --max-steps 10").done();
        let generate: Vec<OsString> = ["generate", "--compute-dtype", "f32", "--quant", "nf4", "--temperature", "0"]
            .map(OsString::from)
            .into_iter()
            .chain(["--max-new-tokens", "12", "--prompt", "the old cat", "--model"].map(OsString::from))
            .chain([base.clone().into(), "--adapter".into(), adapter.clone().into()])
            .collect();
        let here = Outcome::of(halfbyte().args(&generate)).success().stdout;
        let Some(mut command) = on_gpu(generate, &work.path("cache")) else { return };
        assert_eq!(Outcome::of(&mut command).success().stdout, here);
        let mut eval: Vec<OsString> =
            ["eval", "--json", "--compute-dtype", "f32", "--model"].map(OsString::from).to_vec();
        eval.extend([base.clone().into(), "--data".into(), work.rows().into(), "--adapter".into(), adapter.into()]);
        let loss = |outcome: Outcome| outcome.json()["loss"].as_f64().unwrap();
        let here = loss(Outcome::of(halfbyte().args(&eval)));
        let there = loss(Outcome::of(&mut on_gpu(eval, &work.path("cache")).unwrap()));
        near("eval", &[there], &[here]);
    }
}

#[test]
fn memory_that_runs_out_in_the_middle_leaves_the_checkpoint_and_says_what_helps() {
    let work = Work::new();
    let run = work.finetune().flags("--save-steps 2 --max-steps 2");
    let Some(outcome) = train(&run, &work) else { return };
    outcome.success();
    let before = work.contents(&run.folder().join("checkpoint-2"));
    let more = run.clone().flags("--resume --max-steps 6 --device cuda");
    // Every buffer its own, so that the fault can come up anywhere.
    let with = |failing: u32| {
        let mut command = on_gpu(more.args(), &work.path("cache")).unwrap();
        command.env("HALFBYTE_CUDA_POOL", "off");
        Outcome::of(command.env("CUDA_ON_CPU_FAIL_ALLOC", failing.to_string()))
    };
    let stopped = (6..14).map(|it| with(1 << it)).find(|it| it.stderr.contains("training stopped"));
    stopped.expect("one of them fails while it trains").failure(&[
        "training stopped at step 3",
        "checkpoint-2 is intact",
        "out of memory",
        "--gradient-checkpointing",
    ]);
    assert!(work.contents(&run.folder().join("checkpoint-2")) == before);
    with(0).success();
}

#[test]
fn a_gpu_too_small_for_the_run_is_refused_before_loading_with_what_would_fit() {
    let work = Work::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets");
    let with = |run: &Finetune, bytes: &str| {
        let mut command = on_gpu(run.clone().flags("--device cuda").args(), &work.path("cache"))?;
        Some(Outcome::of(command.env("CUDA_ON_CPU_MEMORY", bytes)))
    };
    // The workspace of cuBLASLt alone is 32 MiB.
    let (model, data) = (root.join("models/tiny-llama"), root.join("reviews-train.parquet"));
    let large = Finetune::new(&model, &data, &work.path("large"))
        .flags("--per-device-train-batch-size 32 --max-length 64 --gradient-checkpointing off");
    let Some(refused) = with(&large, "70000000") else { return };
    refused.user_error(&[
        "the GPU has 66.8 MiB of 66.8 MiB free",
        "for activations",
        "--per-device-train-batch-size 1 would need",
        "fit",
    ]);
    assert!(!large.folder().join("metrics.jsonl").exists());
    let run = work.finetune();
    with(&run, "10000000").unwrap().user_error(&["smaller model", "--device cpu"]);
    with(&run, "64000000").unwrap().success();
    assert!(run.summary()["peak_gpu_mib"].as_f64().unwrap() < 61.0);
}

#[test]
fn a_kernel_that_fails_stops_the_run_with_a_reason() {
    let work = Work::new();
    let run = work.finetune().flags("--save-steps 1 --max-steps 4 --device cuda");
    let Some(mut command) = on_gpu(run.args(), &work.path("cache")) else { return };
    let failed = Outcome::of(command.env("CUDA_ON_CPU_FAIL_LAUNCH", "150"));
    failed.failure(&["training stopped", "CUDA_ERROR_LAUNCH_FAILED", "halfbyte doctor"]);
    assert!(!run.folder().join("adapter_model.safetensors").exists(), "no result is left");
}

#[test]
fn a_damaged_kernel_cache_is_made_again() {
    let work = Work::new();
    let run = work.finetune();
    let Some(outcome) = train(&run, &work) else { return };
    outcome.success();
    let (kernels, whole) = (work.path("cache").join("kernels"), run.adapter_bytes());
    let files: Vec<_> = fs::read_dir(&kernels).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(files.len() > 5, "{files:?}");
    for (i, file) in files.iter().enumerate() {
        let mut bytes = fs::read(file).unwrap();
        if i % 2 == 0 {
            bytes.truncate(20);
        } else {
            let last = bytes.len() - 2;
            bytes[last] ^= 1;
        }
        fs::write(file, bytes).unwrap();
    }
    train(&run.clone().flags("--overwrite"), &work).unwrap().success();
    assert!(run.adapter_bytes() == whole);
}

#[test]
fn doctor_tries_the_gpu_or_says_what_is_missing() {
    let work = Work::new();
    let missing = Outcome::of(halfbyte().arg("doctor")).success().stdout;
    assert!(missing.contains("CUDA cannot be used") && missing.contains("--device cpu"), "{missing}");
    let Some(mut command) = on_gpu(["doctor".into()], &work.path("cache")) else { return };
    let ready = Outcome::of(&mut command).success().stdout;
    for part in [
        "cuda:0 CUDA on the CPU",
        "compute capability 9.0",
        "libnvrtc.so",
        "free",
        "multiplies, and rightly",
        "CUDA is ready",
    ] {
        assert!(ready.contains(part), "{part}: {ready}");
    }
}

#[test]
fn half_precision_learns_with_its_loss_scaled_on_both_devices() {
    let work = Work::new();
    let exact = work.finetune().flags("--max-steps 8").output(&work.path("exact"));
    exact.done();
    let half = work.finetune().flags("--max-steps 8 --compute-dtype f16").output(&work.path("half"));
    half.done();
    let there = half.clone().output(&work.path("there"));
    let Some(outcome) = train(&there, &work) else { return };
    outcome.success();
    for ((exact, half), there) in exact.losses().iter().zip(half.losses()).zip(there.losses()) {
        assert!((half / exact - 1.0).abs() < 0.01 && (there / exact - 1.0).abs() < 0.01, "{exact} {half} {there}");
    }
}

#[test]
fn a_gpu_that_fails_during_evaluation_is_an_error_and_never_a_number() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let mut eval: Vec<OsString> =
        ["eval", "--json", "--quant", "nf4", "--device", "cuda", "--model"].map(OsString::from).to_vec();
    eval.extend([base.into(), "--data".into(), work.rows().into()]);
    for setting in ["CUDA_ON_CPU_FAIL_COPY", "CUDA_ON_CPU_FAIL_LAUNCH", "CUDA_ON_CPU_FAIL_ALLOC"] {
        let mut at = 1u32;
        let failures = loop {
            let Some(mut command) = on_gpu(eval.clone(), &work.path("cache")) else { return };
            // Every buffer its own, so that there are many to fail.
            command.env("HALFBYTE_CUDA_POOL", "off");
            let outcome = Outcome::of(command.env(setting, at.to_string()));
            if outcome.code == Some(0) {
                // What was asked for ended before the fault.
                let said = outcome.stdout.clone();
                assert!(outcome.json()["loss"].as_f64().is_some_and(f64::is_finite), "{setting}={at}: {said}");
                break at.trailing_zeros();
            }
            assert_eq!(outcome.stdout, "", "{setting}={at}");
            let told = ["CUDA_ERROR_", "out of memory"].iter().any(|it| outcome.stderr.contains(it));
            assert!(told && !outcome.stderr.contains("panicked"), "{setting}={at}: {}", outcome.stderr);
            at *= 2;
        };
        assert!(failures >= 3, "{setting}: the fault came up {failures} times");
    }
}

#[test]
fn another_gpu_is_chosen_by_its_number() {
    let work = Work::new();
    let run = |device: &str, output: &str| {
        let run =
            work.finetune().flags("--max-steps 2").output(&work.path(output)).flags(&format!("--device {device}"));
        let mut command = on_gpu(run.args(), &work.path("cache"))?;
        Some((Outcome::of(command.env("CUDA_ON_CPU_DEVICES", "2")), run))
    };
    let Some((first, on_first)) = run("cuda", "first") else { return };
    assert!(first.success().stderr.contains("computing on cuda:0"));
    let (second, on_second) = run("cuda:1", "second").unwrap();
    assert!(second.success().stderr.contains("computing on cuda:1"));
    assert!(on_first.adapter_bytes() == on_second.adapter_bytes(), "which GPU it is does not show");
    let (missing, _) = run("cuda:2", "third").unwrap();
    missing.user_error(&["there is no device cuda:2", "cuda:0 (CUDA on the CPU)", "cuda:1 (CUDA on the CPU)"]);
    let (wrong, _) = run("cuda:one", "fourth").unwrap();
    wrong.user_error(&["`cuda:one` is no device", "auto, cpu, cuda or cuda:N"]);
}

#[test]
fn a_profile_goes_by_the_clock_of_the_gpu() {
    let work = Work::new();
    let run = work.finetune().flags("--profile");
    let Some(outcome) = train(&run, &work) else { return };
    let table = outcome.success().stderr;
    assert!(table.contains("seconds by the GPU's own clock"), "{table}");
    let text = fs::read_to_string(run.folder().join("profile.json")).unwrap();
    let lines: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let of = |op: &str, phase: &str, key: &str| {
        lines.iter().find(|it| it["op"] == op && it["phase"] == phase).and_then(|it| it[key].as_f64()).unwrap()
    };
    // The stand-in works only when somebody waits: by the host's clock an op would take the time to ask for it, and whoever
    // waits, all of it.
    let products = of("lora_linear", "forward", "seconds") + of("lora_linear", "backward", "seconds");
    let whole: f64 = lines.iter().filter_map(|it| it["seconds"].as_f64()).sum();
    assert!(products > 0.1 * whole && of("optimizer", "", "seconds") < 0.5 * whole, "{table}");
    assert!(of("lora_linear", "forward", "launches") >= of("lora_linear", "forward", "calls"), "{table}");
    assert!(of("lora_linear", "forward", "gflops_per_second") > 0.0, "{table}");
}

/// Matrices in bf16 go to the GPU as they are and are quantised there, codes go there from their file.
#[test]
fn a_folder_is_loaded_there_as_it_is_on_a_cpu() {
    let work = Work::new();
    let model = work.model(&TinyModel { bf16: true, shards: 3, tied: false, ..TinyModel::llama() });
    let stored = work.path("stored");
    let quantize = |flags: &str| {
        let mut args: Vec<OsString> = vec!["quantize".into(), "--model".into(), model.clone().into()];
        args.extend(["--output".into(), stored.clone().into()]);
        args.extend(flags.split_whitespace().map(OsString::from));
        Outcome::of(halfbyte().args(args)).success();
    };
    let loss = |folder: &Path, flags: &str, there: bool| {
        let mut args: Vec<OsString> =
            ["eval", "--json", "--compute-dtype", "f32", "--model"].map(OsString::from).to_vec();
        args.extend([folder.into(), "--data".into(), work.rows().into()]);
        args.extend(flags.split_whitespace().map(OsString::from));
        match there {
            true => {
                args.extend(["--device".into(), "cuda".into()]);
                Some(Outcome::of(&mut on_gpu(args, &work.path("cache"))?).json()["loss"].as_f64().unwrap())
            }
            false => Some(Outcome::of(halfbyte().args(args)).json()["loss"].as_f64().unwrap()),
        }
    };
    for flags in ["--quant none", "--quant nf4", "--quant fp4 --double-quant off --block-size 32", "--quant int8"] {
        let Some(there) = loss(&model, flags, true) else { return };
        near(flags, &[there], &[loss(&model, flags, false).unwrap()]);
    }
    for flags in ["--quant nf4", "--quant fp4 --double-quant off --overwrite", "--quant int8 --overwrite"] {
        quantize(flags);
        near(flags, &[loss(&stored, "", true).unwrap()], &[loss(&stored, "", false).unwrap()]);
    }
}

#[test]
fn weights_that_are_not_numbers_are_refused_by_name_there_too() {
    let work = Work::new();
    let tiny = TinyModel::llama();
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"] {
        let (folder, mut tensors) = (work.path("changed"), tiny.tensors());
        tensors.iter_mut().find(|it| it.name == name).unwrap().values[5] = f32::NAN;
        tiny.write_with(&folder, &tensors);
        let mut args: Vec<OsString> =
            ["generate", "--quant", "nf4", "--device", "cuda", "--prompt", "the"].map(OsString::from).to_vec();
        args.extend(["--model".into(), folder.into()]);
        let Some(mut command) = on_gpu(args, &work.path("cache")) else { return };
        Outcome::of(&mut command).user_error(&["model.safetensors", name, "NaN or infinite"]);
    }
}
