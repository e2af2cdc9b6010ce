//! Mixtures of experts where they differ from other models: formats, dtypes, adapters on parameters, files.

#![cfg(target_os = "linux")]

use crate::cuda::on_gpu;
use e2e::{Family, Finetune, Outcome, TinyModel, Work, run};
use safetensors::SafeTensors;
use serde_json::json;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

const FAMILIES: [Family; 3] = [Family::Mixtral, Family::Qwen3Moe, Family::GptOss];
const BOTH: &str = "--target-parameters mlp.experts.gate_up_proj,mlp.experts.down_proj";

/// A gpt-oss whose experts are in MXFP4, with rows for it.
fn packed() -> [PathBuf; 2] {
    let stack = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/stack");
    [stack.join("gpt-oss-mxfp4"), stack.join("rows.jsonl")]
}

fn loss(dtype: &str, model: &Path, rows: &Path, adapter: Option<&Path>) -> f64 {
    let args = ["eval", "--json", "--compute-dtype", dtype].map(OsString::from).into_iter();
    let paths = ["--model".into(), model.into(), "--data".into(), rows.into()];
    let adapter = adapter.into_iter().flat_map(|it| ["--adapter".into(), it.into()]);
    run(args.chain(paths).chain(adapter)).json()["loss"].as_f64().unwrap()
}

#[test]
fn sixteen_bits_are_as_good_as_thirty_two() {
    for family in Family::ALL {
        let work = Work::new();
        let base = work.model(&TinyModel::of(family));
        let [wide, narrow] = ["f32", "bf16"].map(|it| loss(it, &base, &work.rows(), None));
        assert!((narrow / wide - 1.0).abs() < 0.005, "{family:?}: {narrow} in bf16, {wide} in f32");
    }
}

#[test]
fn experts_in_eight_bits_are_read_and_train() {
    for family in FAMILIES {
        let work = Work::new();
        let base = work.model(&TinyModel::of(family));
        let stored = work.path("stored");
        let paths = [OsString::from("--model"), base.clone().into(), "--output".into(), stored.clone().into()];
        run(["quantize", "--quant", "int8"].map(OsString::from).into_iter().chain(paths)).success();
        let (whole, narrow) = (work.loss(&base, None, ""), work.loss(&stored, None, ""));
        assert!((narrow / whole - 1.0).abs() < 0.02, "{family:?}: {narrow} in 8 bits, {whole} without");
        let stays = Finetune::new(&stored, &work.rows(), &work.path("run"));
        let stays = stays.without(&["--quant", "--method"]).flags("--max-steps 8");
        stays.done();
        let losses = stays.losses();
        assert!(losses[7] < losses[0], "{family:?}: {losses:?}");
    }
}

#[test]
fn adapters_on_the_experts_of_gpt_oss_train_merge_and_run_on_a_gpu() {
    let work = Work::new();
    let base = work.model(&TinyModel::of(Family::GptOss));
    let cpu = Finetune::new(&base, &work.rows(), &work.path("cpu")).flags(&format!("--max-steps 20 {BOTH}"));
    let adapter = cpu.done();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["target_parameters"], json!(["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]));
    let merged = work.path("merged");
    let paths = ["--model".into(), base.clone().into(), "--adapter".into(), adapter.clone().into()];
    let output: [OsString; 4] = ["--output".into(), merged.clone().into(), "--dtype".into(), "f32".into()];
    run([OsString::from("merge")].into_iter().chain(paths).chain(output)).success();
    let (with, alone) = (work.loss(&base, Some(&adapter), ""), work.loss(&merged, None, ""));
    assert!((with - alone).abs() < 4e-4, "merged {alone}, base and adapter {with}");
    // As transformers has them: one parameter for all experts.
    let shapes = |folder: &Path| {
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let files = SafeTensors::deserialize(&bytes).unwrap();
        let all = files.tensors().into_iter().map(|(name, it)| (name, it.shape().to_vec()));
        all.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(shapes(&base), shapes(&merged));
    gpu_goes_the_same_way(&work, &cpu);
}

fn gpu_goes_the_same_way(work: &Work, cpu: &Finetune) {
    let gpu = cpu.clone().output(&work.path("gpu")).flags("--device cuda");
    let Some(mut command) = on_gpu(gpu.args(), &work.path("cache")) else { return };
    Outcome::of(&mut command).success();
    for (got, wanted) in gpu.losses().iter().zip(cpu.losses()) {
        assert!((got / wanted - 1.0).abs() < 2e-6, "{got} on the GPU, {wanted} on the CPU");
    }
}

#[test]
fn experts_in_mxfp4_train_on_a_gpu_as_on_the_cpu_and_are_merged_into_numbers() {
    let work = Work::new();
    let [base, rows] = packed();
    let cpu = Finetune::new(&base, &rows, &work.path("cpu")).flags(&format!("--max-steps 6 {BOTH}"));
    let adapter = cpu.done();
    let said = run(["inspect".into(), "--model".into(), base.clone().into_os_string()]).success().stdout;
    assert!(said.contains("mxfp4"), "{said}");
    gpu_goes_the_same_way(&work, &cpu);
    let merged = work.path("merged");
    let paths = ["--model".into(), base.clone().into(), "--adapter".into(), adapter.clone().into()];
    let output: [OsString; 4] = ["--output".into(), merged.clone().into(), "--dtype".into(), "f32".into()];
    run([OsString::from("merge")].into_iter().chain(paths).chain(output)).success();
    let (with, alone) = (loss("f32", &base, &rows, Some(&adapter)), loss("f32", &merged, &rows, None));
    assert!((with - alone).abs() < 4e-4, "merged {alone}, base and adapter {with}");
}

#[test]
fn what_the_experts_of_gpt_oss_cannot_is_refused_by_a_sentence() {
    let work = Work::new();
    let base = work.model(&TinyModel::of(Family::GptOss));
    let said = |flags: &str, parts: &[&str]| {
        let it = Finetune::new(&base, &work.rows(), &work.path("run"));
        let it = if flags.contains("full") {
            it.without(&["--method", "--quant", "--rank", "--lora-alpha", "--target-modules"])
        } else {
            it
        };
        it.flags(flags).run().user_error(parts);
    };
    said("--method full", &["self_attn.sinks cannot train", "--method full is not supported for GptOssForCausalLM"]);
    said("--bias all", &["bias is all", "mlp.experts.gate_up_proj", "lora_only"]);
    said(&format!("{BOTH} --lora-dropout 0.1"), &["holds experts, on which lora_dropout is not supported"]);
    said(&format!("{BOTH} --modules-to-save mlp.experts"), &["modules_to_save names"]);
}
