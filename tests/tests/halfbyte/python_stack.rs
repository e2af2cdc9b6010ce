//! Models, bitsandbytes checkpoints, adapters and trainings of transformers + peft, through the binary: `tests/fixtures/stack`,
//! or the same files made anew where `HALFBYTE_FIXTURES` says.
//!
//! Each comparison prints a line `parity | what | largest error | allowed`.

// What was compared is read by `cargo xtask parity`.
#![allow(clippy::print_stdout)]

use e2e::{Finetune, Work, run};
use serde_json::Value;
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// Sums of f32 in another order, over a few layers.
const F32: f64 = 1e-5;
/// LLM.int8() of bitsandbytes rounds every product to f16, and the activations' scale on the way.
const INT8: f64 = 1e-3;
/// AdamW divides by small gradients, which widens what rounding began.
const TRAINED: f64 = 1e-5;

fn stack() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    env::var_os("HALFBYTE_FIXTURES").map_or_else(own, PathBuf::from).join("stack")
}

fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(stack().join("expected.json")).unwrap()).unwrap()
}

fn judge(what: &str, error: f64, allowed: f64) {
    println!("parity | {what} | {error:.1e} | {allowed:.0e}");
    assert!(error <= allowed, "{what}: {error}, at most {allowed} is allowed");
}

fn loss(base: &str, adapter: Option<&str>) -> f64 {
    let mut args: Vec<OsString> = ["eval", "--json", "--compute-dtype", "f32"].map(OsString::from).to_vec();
    args.extend(["--model".into(), stack().join(base).into(), "--data".into(), stack().join("rows.jsonl").into()]);
    if let Some(name) = adapter {
        args.extend(["--adapter".into(), stack().join("adapters").join(name).into()]);
    }
    run(args).json()["loss"].as_f64().unwrap()
}

#[test]
fn bases_and_adapters_have_the_losses_of_transformers_and_peft() {
    let expected = expected();
    let cases = expected["losses"].as_array().unwrap();
    assert!(cases.len() >= 13, "{} cases", cases.len());
    let mut seen = Vec::new();
    for case in cases {
        let (base, adapter) = (case["base"].as_str().unwrap(), case["adapter"].as_str());
        let (got, wanted) = (loss(base, adapter), case["loss"].as_f64().unwrap());
        let allowed = if base == "llama-int8" { INT8 } else { F32 };
        let with = adapter.map_or_else(String::new, |it| format!(" with the adapter {it}"));
        judge(&format!("loss of {base}{with}"), (got / wanted - 1.0).abs(), allowed);
        seen.push(wanted);
    }
    // Two cases of one loss would mean that an adapter or a format was not looked at.
    seen.sort_by(f64::total_cmp);
    assert!(seen.windows(2).all(|it| it[1] - it[0] > 1e-5), "{seen:?}");
}

#[test]
fn trainings_that_begin_with_the_same_adapter_go_the_same_way() {
    let expected = expected();
    for case in expected["trainings"].as_array().unwrap() {
        let (base, adapter) = (case["base"].as_str().unwrap(), case["adapter"].as_str().unwrap());
        let wanted: Vec<f64> = case["losses"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
        let work = Work::new();
        let run = Finetune::new(&stack().join(base), &stack().join("rows.jsonl"), &work.path("run"))
            .without(&["--method", "--quant", "--rank", "--lora-alpha", "--target-modules", "--seed"])
            .flags("--no-shuffle --learning-rate 2e-3 --num-train-epochs 25 --no-eval-before --logging-steps 1")
            .flags(&format!("--max-steps {}", wanted.len()))
            .flags(if base.contains("nf4") { "" } else { "--quant none" })
            .path("--init-adapter", stack().join("adapters").join(adapter));
        run.done();
        let got = run.losses();
        assert_eq!(got.len(), wanted.len());
        // Four steps are the rows once.
        let sum = |part: &[f64]| part.iter().sum::<f64>();
        assert!(sum(&wanted[96..]) < 0.9 * sum(&wanted[..4]), "{base} learns: {wanted:?}");
        let worst = got.iter().zip(&wanted).map(|(g, w)| (g / w - 1.0).abs()).fold(0.0, f64::max);
        judge(&format!("{} steps of {adapter} on {base}", wanted.len()), worst, TRAINED);
    }
}
