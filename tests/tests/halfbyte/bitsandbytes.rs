//! Folders that are quantised already are used as they are, and damaged ones are refused.

use e2e::{Outcome, Tensors, TinyModel, Work, run};
use serde_json::Value;
use std::{ffi::OsString, fs, path::Path};

fn quantize(model: &Path, output: Option<&Path>, flags: &str) -> Outcome {
    let mut args: Vec<OsString> = vec!["quantize".into(), "--model".into(), model.into()];
    if let Some(path) = output {
        args.extend(["--output".into(), path.into()]);
    }
    args.extend(flags.split_whitespace().map(OsString::from));
    run(args)
}

fn weights(adapter: &Path) -> Tensors {
    Tensors::read(&adapter.join("adapter_model.safetensors"))
}

#[test]
fn a_quantised_folder_is_used_as_it_is_by_every_command() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    for quant in ["nf4", "nf4 --double-quant off --block-size 128", "fp4", "int8"] {
        let stored = work.path("stored");
        quantize(&model, Some(&stored), &format!("--overwrite --quant {quant}")).success();
        let direct = work.loss(&model, None, &format!("--quant {quant}"));
        assert_eq!(work.loss(&stored, None, ""), direct, "{quant}: the same bits");
    }
}

#[test]
fn adapters_train_on_a_quantised_folder_and_merge_into_a_dense_one() {
    let work = Work::new();
    let (model, stored) = (work.model(&TinyModel::llama()), work.path("stored"));
    quantize(&model, Some(&stored), "--double-quant off").success();
    let direct = work.finetune().flags("--double-quant off").output(&work.path("direct"));
    direct.done();
    let indirect = work.finetune().path("--model", &stored).without(&["--quant", "--method"]);
    let adapter = indirect.output(&work.path("indirect")).done();
    let (direct, indirect) = (weights(&work.path("direct")), weights(&adapter));
    assert_eq!(direct.largest_difference(&indirect), 0.0, "the same base, the same adapter");
    let merged = work.path("merged");
    let merge = |flags: &str| {
        let mut args: Vec<OsString> = vec!["merge".into(), "--model".into(), (&stored).into(), "--adapter".into()];
        args.extend([(&adapter).into(), "--output".into(), (&merged).into()]);
        args.extend(flags.split_whitespace().map(OsString::from));
        run(args)
    };
    merge("--quant nf4 --double-quant on").user_error(&["--double-quant", "stored quantised already", "original"]);
    merge("--dtype f32").success();
    let config: Value = serde_json::from_str(&fs::read_to_string(merged.join("config.json")).unwrap()).unwrap();
    assert!(config.get("quantization_config").is_none(), "the merged model is dense");
    let (after, before) = (work.loss(&merged, None, ""), work.loss(&stored, Some(&adapter), ""));
    assert!((before - after).abs() < 1e-5, "{before} {after}");
}

#[test]
fn flags_that_contradict_a_quantised_folder_and_training_it_in_full_are_refused() {
    let work = Work::new();
    let (model, stored) = (work.model(&TinyModel::llama()), work.path("stored"));
    quantize(&model, Some(&stored), "").success();
    for flag in ["--quant fp4", "--quant none", "--double-quant off", "--block-size 128"] {
        let name = flag.split(' ').next().unwrap();
        work.eval(&stored, None, flag).user_error(&[name, "stored", "quantised already", "original weights"]);
        let run = work.finetune().path("--model", &stored).without(&["--quant", "--method"]);
        run.flags(flag).run().user_error(&[name, "quantised already"]);
    }
    let full = work.finetune().path("--model", &stored).without(&["--quant"]).flags("--method full");
    full.run().user_error(&["--method full", "quantised", "adapter"]);
    quantize(&stored, None, "").user_error(&["quantised already", "original weights"]);
}

#[test]
fn damaged_quantised_folders_are_refused_with_the_tensor_named() {
    let work = Work::new();
    let (model, stored) = (work.model(&TinyModel::llama()), work.path("stored"));
    quantize(&model, Some(&stored), "").success();
    let file = stored.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let swap = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut changed = bytes.clone();
        let at = changed.windows(from.len()).position(|it| it == from.as_bytes()).expect(from);
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&file, changed).unwrap();
        work.eval(&stored, None, "")
    };
    let path = "model.layers.0.mlp.down_proj";
    swap(&format!("{path}.weight.quant_map"), &format!("{path}.weight.quant_mop")).user_error(&[
        path,
        "quant_map",
        "missing",
    ]);
    swap("\"nested_blocksize\":256", "\"nested_blocksize\":128").user_error(&["mlp", "256"]);
    swap("\"nested_offset\"", "\"nested_offsat\"").user_error(&["quant_state", "nested_offsat"]);
    let config = fs::read_to_string(stored.join("config.json")).unwrap();
    fs::write(stored.join("config.json"), config.replace("\"bitsandbytes\"", "\"gptq\"")).unwrap();
    work.eval(&stored, None, "").user_error(&["config.json", "gptq", "bitsandbytes", "original weights"]);
}
