//! Folding an adapter into its base, and writing a base in four bits.

use e2e::{Finetune, Tensors, TinyModel, Work, run};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

fn merge(base: &Path, adapter: &Path, output: &Path, flags: &str) -> e2e::Outcome {
    let mut args: Vec<OsString> = vec![
        "merge".into(),
        "--model".into(),
        base.into(),
        "--adapter".into(),
        adapter.into(),
        "--output".into(),
        output.into(),
    ];
    args.extend(flags.split_whitespace().map(OsString::from));
    run(args)
}

struct Trained {
    work: Work,
    base: PathBuf,
    adapter: PathBuf,
    /// Of base and adapter together, and of the base alone.
    losses: (f64, f64),
}

/// Twenty steps, so that the adapter matters.
fn train(model: &TinyModel, flags: &str) -> Trained {
    let work = Work::new();
    let base = work.model(model);
    let run = Finetune::new(&base, &work.rows(), &work.path("run"))
        .without(&["--method"])
        .flags("--max-steps 20")
        .flags(flags);
    let adapter = run.done();
    let quant = if flags.contains("none") { "--quant none" } else { "--quant nf4" };
    let losses = (work.loss(&base, Some(&adapter), ""), work.loss(&base, None, quant));
    assert!(losses.1 - losses.0 > 0.5, "the adapter matters: {losses:?}");
    Trained { work, base, adapter, losses }
}

/// A logit is the end of some ten products of at most 64 terms, each rounded by 2^-24 relatively: in the worst case
/// 10 * 64 * 2^-24 = 4e-5 of a logit, which is below 10 here.
const F32_TOLERANCE: f64 = 4e-4;

#[track_caller]
fn merged_is_base_and_adapter(it: &Trained) {
    let merged = it.work.path("merged");
    merge(&it.base, &it.adapter, &merged, "--dtype f32").success();
    let loss = it.work.loss(&merged, None, "");
    assert!((loss - it.losses.0).abs() < F32_TOLERANCE, "merged {loss}, base and adapter {}", it.losses.0);
}

#[test]
fn a_merge_onto_a_base_as_loaded_has_the_loss_of_base_and_adapter() {
    merged_is_base_and_adapter(&train(&TinyModel::llama(), "--quant none"));
}

#[test]
fn a_merge_happens_onto_the_four_bit_base_that_the_adapter_saw() {
    let it = train(&TinyModel::llama(), "--quant nf4");
    merged_is_base_and_adapter(&it);
    let plain = it.work.path("plain");
    merge(&it.base, &it.adapter, &plain, "--dtype f32 --quant none").success();
    let loss = it.work.loss(&plain, None, "");
    assert!(
        (loss - it.losses.0).abs() > 10.0 * F32_TOLERANCE,
        "the record beside the adapter made the difference: {loss}"
    );
}

#[test]
fn a_gpt_neo_with_its_biases_merges_too() {
    merged_is_base_and_adapter(&train(&TinyModel::gpt_neo(), "--quant nf4 --bias all"));
}

#[test]
fn an_untied_head_that_was_trained_along_is_merged() {
    let model = TinyModel { tied: false, attention_bias: true, ..TinyModel::llama() };
    merged_is_base_and_adapter(&train(
        &model,
        "--quant nf4 --modules-to-save lm_head --target-modules q_proj,v_proj,up_proj",
    ));
}

#[test]
fn a_merge_in_bf16_is_near_and_a_folder_of_its_own() {
    let it = train(&TinyModel::llama(), "--quant nf4");
    let merged = it.work.path("merged");
    merge(&it.base, &it.adapter, &merged, "").success();
    // bf16 keeps eight bits: a thousand times coarser than f32's bound would be, if all errors had one sign.
    let loss = it.work.loss(&merged, None, "");
    assert!((loss - it.losses.0).abs() < 0.05, "merged {loss}, base and adapter {}", it.losses.0);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(merged.join(name).exists(), "{name}");
    }
    assert!(fs::read_to_string(merged.join("config.json")).unwrap().contains("\"torch_dtype\": \"bfloat16\""));
    merge(&it.base, &it.adapter, &merged, "").user_error(&["merged", "exists", "--overwrite"]);
    merge(&it.base, &it.adapter, &merged, "--overwrite").success();
    assert_eq!(it.work.loss(&merged, None, ""), loss);
}

#[test]
fn a_merge_leaves_what_no_adapter_touched_as_it_was() {
    let it = train(&TinyModel::llama(), "--quant none --target-modules q_proj,up_proj");
    let merged = it.work.path("merged");
    merge(&it.base, &it.adapter, &merged, "--dtype f32").success();
    let (before, after) =
        (Tensors::read(&it.base.join("model.safetensors")), Tensors::read(&merged.join("model.safetensors")));
    assert!(before.0.keys().eq(after.0.keys()));
    for (name, values) in &before.0 {
        let adapted = name.contains("q_proj") || name.contains("up_proj");
        assert_eq!(*values == after.0[name], !adapted, "{name}");
    }
}

#[test]
fn overwriting_replaces_a_model_folder_and_nothing_else() {
    let work = Work::new();
    let (base, adapter) = (work.model(&TinyModel::llama()), work.finetune().done());
    let folder = work.path("mine");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("thesis.pdf"), "years of work").unwrap();
    merge(&base, &adapter, &folder, "--overwrite").user_error(&["mine", "thesis.pdf", "model folder"]);
    fs::remove_file(folder.join("thesis.pdf")).unwrap();
    fs::create_dir(folder.join("drafts")).unwrap();
    merge(&base, &adapter, &folder, "--overwrite").user_error(&["mine", "drafts"]);
    let file = work.path("file");
    fs::write(&file, "a file").unwrap();
    merge(&base, &adapter, &file, "--overwrite").user_error(&["file", "name a folder"]);
    for source in [&base, &adapter, &work.path("")] {
        let before = work.contents(&base);
        merge(&base, &adapter, source, "--overwrite").user_error(&["which is being read"]);
        assert!(work.contents(&base) == before && adapter.join("adapter_config.json").exists());
    }
    assert!(folder.join("drafts").is_dir() && fs::read(&file).unwrap() == b"a file");
}

#[test]
fn an_adapter_on_the_output_head_is_refused() {
    let work = Work::new();
    let base = work.model(&TinyModel { tied: false, ..TinyModel::llama() });
    let adapter = Finetune::new(&base, &work.rows(), &work.path("run")).flags("--target-modules q_proj").done();
    let path = adapter.join("adapter_config.json");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains("\"q_proj\""), "{config}");
    fs::write(&path, config.replace("\"q_proj\"", "\"q_proj\", \"lm_head\"")).unwrap();
    work.eval(&base, Some(&adapter), "").user_error(&["lm_head", "output head", "modules_to_save"]);
}

#[test]
fn the_merged_model_is_compared_with_base_and_adapter() {
    let it = train(&TinyModel::llama(), "--quant none");
    let exact = merge(&it.base, &it.adapter, &it.work.path("exact"), "--dtype f32").success();
    assert!(exact.stderr.contains("top-1 agreement 100.0 %"), "{}", exact.stderr);
    let divergence = |said: &str| -> f64 {
        let after = said.split("KL divergence ").nth(1).expect(said);
        after.split(' ').next().unwrap().parse().unwrap()
    };
    let rows = it.work.rows();
    let flags = format!("--dtype bf16 --check-data {}", rows.file_name().unwrap().to_str().unwrap());
    let mut command = e2e::halfbyte();
    command.current_dir(rows.parent().unwrap()).args(["merge", "--model"]).arg(&it.base).arg("--adapter");
    command.arg(&it.adapter).arg("--output").arg(it.work.path("rounded")).args(flags.split(' '));
    let rounded = e2e::Outcome::of(&mut command).success();
    let (exact, rounded) = (divergence(&exact.stderr), divergence(&rounded.stderr));
    assert!(exact < 1e-9 && rounded > 1e-7 && rounded < 0.02, "rounding to bf16 shows: {exact}, {rounded}");
}

#[test]
fn a_merge_that_changes_the_predictions_is_refused_unless_forced() {
    let it = train(&TinyModel::llama(), "--quant none");
    let path = it.adapter.join("adapter_model.safetensors");
    let mut tensors = Tensors::read(&path);
    let (name, (_, values)) = tensors.0.iter_mut().find(|it| it.0.ends_with("gate_proj.lora_B.weight")).unwrap();
    assert!(values.iter().any(|it| *it != 0.0), "{name}");
    values.iter_mut().for_each(|it| *it *= 1e9);
    tensors.write(&path, safetensors::Dtype::F32);
    let output = it.work.path("merged");
    let refused = merge(&it.base, &it.adapter, &output, "--dtype f16");
    refused.user_error(&["KL divergence", "base + adapter", "Nothing was written", "--force"]);
    assert!(!output.exists(), "beyond f16's range, and not there");
    let forced = merge(&it.base, &it.adapter, &output, "--dtype f16 --force").success();
    assert!(forced.stderr.contains("because of --force"), "{}", forced.stderr);
    assert!(output.join("model.safetensors").exists());
}

#[test]
fn a_large_merged_model_is_split_into_shards_that_load() {
    let it = train(&TinyModel::llama(), "--quant none");
    let merged = it.work.path("merged");
    merge(&it.base, &it.adapter, &merged, "--dtype f32 --max-shard-size 40000").success();
    let index = fs::read_to_string(merged.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let mut files: Vec<&str> =
        index["weight_map"].as_object().unwrap().values().map(|it| it.as_str().unwrap()).collect();
    files.sort_unstable();
    files.dedup();
    assert!(files.len() > 2 && files[0] == format!("model-00001-of-{:05}.safetensors", files.len()), "{files:?}");
    assert!(!merged.join("model.safetensors").exists());
    let sizes = files.iter().map(|file| fs::metadata(merged.join(file)).unwrap().len());
    assert!(sizes.clone().all(|it| it < 42_000), "{:?}", sizes.collect::<Vec<_>>());
    let loss = it.work.loss(&merged, None, "");
    assert!((loss - it.losses.0).abs() < F32_TOLERANCE, "merged {loss}, base and adapter {}", it.losses.0);
}
