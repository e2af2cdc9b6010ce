//! `halfbyte quantize`: what few bits cost, and a checkpoint as bitsandbytes keeps it.

use e2e::{Outcome, TinyModel, Work, run};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

fn quantize(model: &Path, output: Option<&Path>, flags: &str) -> Outcome {
    let mut args: Vec<OsString> = vec!["quantize".into(), "--model".into(), model.into()];
    if let Some(path) = output {
        args.extend(["--output".into(), path.into()]);
    }
    args.extend(flags.split_whitespace().map(OsString::from));
    run(args)
}

#[test]
fn the_error_of_every_matrix_is_reported_and_finer_formats_have_less() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let worst = |flags: &str| {
        let report = quantize(&model, None, &format!("--json {flags}")).json();
        let matrices = report["matrices"].as_array().unwrap();
        let expected: Vec<String> = TinyModel::llama().linears().into_iter().map(|it| it.0).collect();
        let paths: Vec<&str> = matrices.iter().map(|it| it["path"].as_str().unwrap()).collect();
        assert_eq!(paths, expected);
        let errors = matrices.iter().map(|it| it["relative_error"].as_f64().unwrap());
        (errors.fold(0.0, f64::max), report["bits_per_parameter"].as_f64().unwrap())
    };
    let (nf4, bits) = worst("--quant nf4");
    // Uniform weights: sixteen levels leave about a sixteenth of the range, and its root mean square is a quarter of that.
    assert!((0.03..0.15).contains(&nf4), "{nf4}");
    assert!((4.1..4.4).contains(&bits), "{bits} bits");
    let (_, plain_bits) = worst("--quant nf4 --double-quant off");
    assert_eq!(plain_bits, 4.5, "an f32 scale for each 64");
    let (int8, _) = worst("--quant int8");
    assert!(int8 < nf4 / 8.0, "{int8}");
}

#[test]
fn a_checkpoint_has_the_names_and_sizes_of_bitsandbytes() {
    let work = Work::new();
    let (model, output) = (work.model(&TinyModel::llama()), work.path("four bits"));
    quantize(&model, Some(&output), "").success();
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let path = "model.layers.0.mlp.up_proj.weight";
    let entry = |suffix: &str| {
        let it = &entries[&format!("{path}{suffix}")];
        (it["dtype"].as_str().unwrap().to_owned(), it["shape"].to_string())
    };
    assert_eq!(entry(""), ("U8".into(), "[1024,1]".into()), "two weights a byte");
    assert_eq!(entry(".absmax"), ("U8".into(), "[32]".into()), "a code for each 64");
    assert_eq!(entry(".quant_map"), ("F32".into(), "[16]".into()));
    assert_eq!(entry(".nested_absmax"), ("F32".into(), "[1]".into()));
    assert!(entries.contains_key(&format!("{path}.quant_state.bitsandbytes__nf4")));
    assert_eq!(entries["model.embed_tokens.weight"]["dtype"], "F32", "what is no linear layer stays as it was");
    let config: Value = serde_json::from_str(&fs::read_to_string(output.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["load_in_4bit"], true);
    assert!(output.join("tokenizer.json").exists());

    quantize(&model, Some(&output), "").user_error(&["four bits", "exists", "--overwrite"]);
    quantize(&model, Some(&output), "--overwrite").success();
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let work = Work::new();
    let (model, output): (PathBuf, PathBuf) = (work.model(&TinyModel::llama()), work.path("out"));
    quantize(&model, None, "--quant none").user_error(&["--quant none", "nf4"]);
    quantize(&model, Some(&output), "--quant int4").user_error(&["int4", "bitsandbytes"]);
    quantize(&model, Some(&output), "--block-size 63").user_error(&["63"]);
    assert!(!output.exists());
}
