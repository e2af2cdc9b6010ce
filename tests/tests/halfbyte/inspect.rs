//! What the commands say that only look.

use e2e::{TinyModel, Work, run};
use serde_json::Value;
use std::{ffi::OsString, path::Path};

fn inspect(model: &Path, flags: &str) -> e2e::Outcome {
    let mut args: Vec<OsString> = vec!["inspect".into(), "--model".into(), model.into()];
    args.extend(flags.split_whitespace().map(OsString::from));
    run(args)
}

fn counts(model: &TinyModel, flags: &str) -> (u64, u64) {
    let work = Work::new();
    let object = inspect(&work.model(model), &format!("--json {flags}")).json();
    let number = |key: &str| object[key].as_u64().unwrap_or_else(|| panic!("{key} in {object:#}"));
    assert!(number("planned_bytes") > 0);
    (number("trainable_parameters"), number("total_parameters"))
}

#[test]
fn the_counts_are_pefts() {
    let models = [
        TinyModel::llama(),
        TinyModel::gpt_neo(),
        TinyModel { tied: false, attention_bias: true, ..TinyModel::llama() },
    ];
    for model in models {
        let adapter: usize = model.linears().iter().map(|(_, [out, inner])| 8 * (out + inner)).sum();
        let expected = (adapter as u64, (model.parameters() + adapter) as u64);
        assert_eq!(counts(&model, "--quant nf4 --rank 8 --target-modules all-linear"), expected, "{model:?}");
        assert_eq!(counts(&model, "--quant nf4"), (0, model.parameters() as u64), "{model:?}");
    }
}

#[test]
fn names_and_regular_expressions_choose_the_layers() {
    // q and v of both layers: 32 + 32 and 32 + 16 channels.
    assert_eq!(counts(&TinyModel::llama(), "--rank 2 --target-modules q_proj,v_proj").0, 2 * 2 * (64 + 48));
    assert_eq!(counts(&TinyModel::llama(), "--rank 2 --target-modules .*layers\\.1.*(q|v)_proj").0, 2 * (64 + 48));
}

#[test]
fn four_bits_take_an_eighth_of_f32() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    let bytes = |flags: &str| -> u64 {
        let object = inspect(&model, &format!("--json {flags}")).json();
        let linears =
            object["modules"].as_array().unwrap().iter().filter(|it| it["path"].as_str().unwrap().ends_with("_proj"));
        linears.map(|it| it["bytes"].as_u64().unwrap()).sum()
    };
    let (whole, four, eight) = (bytes("--quant none"), bytes("--quant nf4"), bytes("--quant int8"));
    assert_eq!(whole, 2 * 4 * (32 * 32 * 2 + 16 * 32 * 2 + 64 * 32 * 3));
    // Half a byte a weight, and a byte for the scale of each 64, with a little over for the scales' own scales.
    let ideal = whole / 8 + whole / 4 / 64;
    assert!((ideal..ideal + ideal / 8).contains(&four), "{four} for an ideal of {ideal}");
    assert!(eight > whole / 4 && eight < whole / 3, "{eight}");
}

#[test]
fn the_structure_is_shown_with_its_adapters() {
    let work = Work::new();
    let outcome = inspect(&work.model(&TinyModel::llama()), "--quant nf4 --target-modules q_proj --rank 8").success();
    for part in [
        "2 layers",
        "4 heads (2 for keys and values)",
        "model.layers.0.self_attn.q_proj",
        "LoRA rank 8",
        "nf4",
        "trainable params: 1,024",
        "memory plan",
    ] {
        assert!(outcome.stdout.contains(part), "`{part}`: {outcome}");
    }
}

#[test]
fn eval_gives_one_object_whose_perplexity_is_that_of_its_loss() {
    let work = Work::new();
    let model = work.model(&TinyModel::gpt_neo());
    let object = work.eval(&model, None, "--quant nf4").json();
    let number = |key: &str| object[key].as_f64().unwrap_or_else(|| panic!("{key}"));
    let words: usize = e2e::ROWS.iter().map(|it| it.split(' ').count() - 1).sum();
    assert_eq!(number("tokens"), words as f64, "every word but the first of each row is predicted");
    assert!((number("perplexity") - number("loss").exp()).abs() < 1e-9 * number("perplexity"));
    let batched = work.loss(&model, None, "--quant nf4 --batch-size 1");
    assert!(
        (batched - number("loss")).abs() < 1e-5,
        "how rows are grouped does not show: {batched} and {}",
        number("loss")
    );
}

#[test]
fn devices_says_what_there_is_with_and_without_cuda() {
    let outcome = run(["devices"]).success();
    assert!(outcome.stdout.contains("CPU: ") && outcome.stdout.contains("CUDA: "), "{outcome}");
}

#[test]
fn help_lists_the_commands_and_an_unknown_one_is_a_mistake() {
    let help = run(["--help"]).success().stdout;
    for command in ["finetune", "generate", "chat", "eval", "inspect", "merge", "quantize", "devices"] {
        assert!(help.contains(command), "{command}");
    }
    run(["fine-tune"]).user_error(&["fine-tune"]);
    let flags = run(["finetune", "--help"]).success().stdout;
    for flag in [
        "--rank",
        "--lora-alpha",
        "--target-modules",
        "--per-device-train-batch-size",
        "--quant",
        "--resume",
        "--config",
    ] {
        assert!(flags.contains(flag), "{flag}");
    }
}

#[test]
fn results_go_to_standard_output_and_messages_do_not() {
    let work = Work::new();
    let outcome = work.finetune().run().success();
    assert_eq!(outcome.stdout, "");
    let model = work.model(&TinyModel::llama());
    let stdout = work.eval(&model, None, "").success().stdout;
    assert!(serde_json::from_str::<Value>(&stdout).is_ok(), "{stdout}");
}
