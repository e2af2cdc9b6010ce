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
