//! What is no number is never kept, believed, or shown as a result.

use e2e::{NamedTensor, Outcome, Tensors, TinyModel, Work, run};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Overwrites the number at `element` of a tensor of a safetensors file.
fn plant(file: &Path, tensor: &str, element: usize, value: f32) {
    let mut bytes = fs::read(file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = header + entries[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 4 * element;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

/// The first tensor whose name holds `part`.
fn tensor(file: &Path, part: &str) -> String {
    Tensors::read(file).0.into_keys().find(|it| it.contains(part)).expect("a tensor of that name")
}

fn generate(model: &Path, adapter: Option<&Path>, flags: &str) -> Outcome {
    let mut args: Vec<_> =
        ["generate", "--prompt", "the cat", "--max-new-tokens", "4", "--model"].map(Into::into).to_vec();
    args.push(model.as_os_str().to_owned());
    if let Some(dir) = adapter {
        args.extend(["--adapter".into(), dir.as_os_str().to_owned()]);
    }
    args.extend(flags.split_whitespace().map(Into::into));
    run(args)
}

#[test]
fn a_last_step_that_overflows_is_not_saved() {
    let work = Work::new();
    // So far that the adapter's own numbers are none, and so far that these are, but their products with others are none.
    for rate in ["1e38", "1e30"] {
        let run = work.finetune().flags(&format!("--max-steps 1 --overwrite --learning-rate {rate}"));
        let outcome = run.run().failure(&["training stopped at step 1", "no checkpoint yet", "--learning-rate"]);
        let folder = work.path("run");
        for file in ["adapter_model.safetensors", "adapter_config.json", "summary.json"] {
            assert!(!folder.join(file).exists(), "{rate}: {file}: {outcome}");
        }
    }
}

#[test]
fn a_checkpoint_that_diverged_does_not_replace_the_last_good_one() {
    let work = Work::new();
    // The first step has a learning rate of zero.
    let run = work.finetune().flags(
        "--learning-rate 1e38 --lr-scheduler-type linear --warmup-steps 1 --save-steps 1 --max-steps 4 --save-total-limit 1",
    );
    run.run().failure(&["training stopped at step 2", "checkpoint-1 is intact"]);
    let folder = work.path("run");
    assert!(!folder.join("checkpoint-2").exists());
    assert!(work.loss(&work.model(&TinyModel::llama()), Some(&folder.join("checkpoint-1")), "--quant nf4").is_finite());
}

#[test]
fn moments_that_are_no_numbers_are_refused_by_name() {
    let work = Work::new();
    let run = work.finetune().flags("--save-steps 2 --max-steps 2");
    let file = run.done().join("checkpoint-2/training_state.safetensors");
    let whole = fs::read(&file).unwrap();
    for (part, value) in [("exp_avg.", f32::NAN), ("exp_avg_sq.", -1.0), ("value.", f32::INFINITY)] {
        fs::write(&file, &whole).unwrap();
        let name = tensor(&file, part);
        plant(&file, &name, 3, value);
        run.clone().flags("--resume --max-steps 4").run().user_error(&[&name, "element 3", "remove this checkpoint"]);
    }
}

#[test]
fn adapters_that_are_no_numbers_are_refused_by_name() {
    let work = Work::new();
    let adapter = work.finetune().done();
    let model = work.model(&TinyModel::llama());
    let file = adapter.join("adapter_model.safetensors");
    let name = tensor(&file, "lora_B");
    plant(&file, &name, 0, f32::NAN);
    let parts = ["adapter_model.safetensors", name.trim_start_matches("base_model.model."), "NaN or infinite"];
    work.eval(&model, Some(&adapter), "").user_error(&parts);
    generate(&model, Some(&adapter), "").user_error(&parts);
    let merge = ["merge".as_ref(), "--model".as_ref(), model.as_os_str(), "--adapter".as_ref(), adapter.as_os_str()];
    run(merge.into_iter().chain(["--output".as_ref(), work.path("merged").as_os_str()])).user_error(&parts);
    assert!(!work.path("merged").exists());
}

/// A model whose numbers are finite, and its logits are not.
fn overflowing(work: &Work) -> PathBuf {
    let (model, path) = (TinyModel::llama(), work.path("overflowing"));
    let mut tensors = model.tensors();
    let norm = |it: &&mut NamedTensor| it.name.contains("layernorm") || it.name == "model.norm.weight";
    tensors.iter_mut().filter(norm).for_each(|it| it.values.iter_mut().for_each(|v| *v = 3e38));
    model.write_with(&path, &tensors);
    path
}

#[test]
fn predictions_that_are_no_numbers_are_a_failure() {
    let work = Work::new();
    let model = overflowing(&work);
    let outcome = work.eval(&model, None, "").failure(&["loss", "NaN"]);
    assert!(outcome.stdout.is_empty(), "{outcome}");
    for flags in ["--temperature 0", "--temperature 1"] {
        generate(&model, None, flags).failure(&["predictions", "NaN"]);
    }
    work.finetune().path("--model", &model).path("--eval-data", work.rows()).run().failure(&["loss"]);
    assert!(!work.path("run/adapter_model.safetensors").exists());
}

#[test]
fn epsilons_that_make_no_numbers_are_refused() {
    let work = Work::new();
    for (model, key) in [(TinyModel::llama(), "rms_norm_eps"), (TinyModel::gpt_neo(), "layer_norm_epsilon")] {
        let path = work.path(key);
        model.write(&path);
        let mut config = model.config();
        config[key] = (-0.99999).into();
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        work.eval(&path, None, "").user_error(&["config.json", key, "not negative"]);
    }
    work.finetune().flags("--adam-epsilon 1e-60").run().user_error(&["--adam-epsilon", "f32"]);
}

#[test]
fn weights_beyond_the_range_of_the_saved_type_are_refused_by_name() {
    let work = Work::new();
    let (model, path) = (TinyModel::llama(), work.path("wide"));
    let mut tensors = model.tensors();
    tensors.iter_mut().find(|it| it.name == "model.norm.weight").unwrap().values[0] = 1e6;
    model.write_with(&path, &tensors);
    let run =
        work.finetune().path("--model", &path).without(&["--quant", "--rank", "--lora-alpha", "--target-modules"]);
    let run = run.flags("--method full --save-dtype f16 --learning-rate 1e-6 --max-steps 1");
    run.run().ends(1, &["model.norm.weight", "float16"]);
    assert!(!work.path("run/config.json").exists() && !work.path("run/model.safetensors").exists());
}
