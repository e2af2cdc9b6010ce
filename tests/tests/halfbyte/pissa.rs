//! Adapters that begin with principal components of their base.

use e2e::{TinyModel, Work, run};
use serde_json::Value;
use std::fs;

const PISSA: &str = "--target-modules q_proj,v_proj,down_proj --rank 4 --lora-alpha 6 --compute-dtype f32";

fn loss_after(folder: &std::path::Path) -> f64 {
    let summary: Value = serde_json::from_str(&fs::read_to_string(folder.join("summary.json")).unwrap()).unwrap();
    summary["eval_loss_after"].as_f64().expect("a loss")
}

#[test]
fn a_run_begins_at_the_loss_of_the_base_and_what_is_saved_works_on_it() {
    for init in ["pissa", "pissa_niter_8"] {
        let work = Work::new();
        let base = work.model(&TinyModel::llama());
        let run = work.finetune().flags("--method lora --quant none --max-steps 20").flags(PISSA);
        let run = run.flags(&format!("--init-lora-weights {init}")).path("--eval-data", work.rows());
        let folder = run.done();
        let summary = run.summary();
        let plain = work.loss(&base, None, "");
        let (before, after) = (summary["eval_loss_before"].as_f64().unwrap(), loss_after(&folder));
        assert!((before - plain).abs() < 1e-4, "{init}: {before} at the start, the base has {plain}");
        assert!(after < before - 0.1, "{init}: it learns, {before} to {after}");
        let saved = work.loss(&base, Some(&folder), "");
        assert!((saved - after).abs() < 1e-4, "{init}: {after} at the end, {saved} as saved");
        let config: Value =
            serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&8.into(), &12.into()));
        assert_eq!(config["init_lora_weights"], true);
    }
}

#[test]
fn a_quantised_base_is_stored_without_them_and_a_resumed_run_finds_the_same_ones() {
    let work = Work::new();
    let run = || {
        work.finetune().flags("--quant nf4 --save-steps 3 --max-steps 6 --init-lora-weights pissa_niter_4").flags(PISSA)
    };
    let whole = run().output(&work.path("whole"));
    whole.done();
    let parts = run().output(&work.path("parts"));
    parts.clone().flags("--max-steps 3").done();
    parts.clone().flags("--resume").done();
    assert!(whole.adapter_bytes() == parts.adapter_bytes(), "the adapters differ");
}

#[test]
fn what_cannot_begin_so_is_refused_before_anything_is_loaded() {
    let work = Work::new();
    for (flags, words) in [
        ("--init-lora-weights pisa", vec!["init_lora_weights", "pisa", "pissa_niter_N"]),
        ("--init-lora-weights pissa --use-dora", vec!["use_dora"]),
    ] {
        work.finetune().flags(flags).run().user_error(&words);
    }
}

#[test]
fn several_adapters_are_measured_on_one_base() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let plain = work.finetune().flags("--method lora --quant none --max-steps 10").output(&work.path("plain")).done();
    let principal =
        work.finetune().flags("--method lora --quant none --max-steps 10 --init-lora-weights pissa").flags(PISSA);
    let principal = principal.output(&work.path("principal")).done();
    let losses = [&plain, &principal].map(|it| work.loss(&base, Some(it), ""));
    let (a, b) = (format!("a={}", plain.display()), format!("b={}", principal.display()));
    let rows = work.rows();
    let args = [
        "eval",
        "--model",
        base.to_str().unwrap(),
        "--data",
        rows.to_str().unwrap(),
        "--json",
        "--compute-dtype",
        "f32",
    ];
    let outcome = run(args.into_iter().chain(["--adapter", &a, "--adapter", &b])).success();
    let found: Vec<Value> = outcome.stdout.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    assert_eq!(found.len(), 2, "{outcome}");
    for ((it, loss), name) in found.iter().zip(losses).zip(["a", "b"]) {
        assert_eq!((it["adapter"].as_str(), it["loss"].as_f64()), (Some(name), Some(loss)), "{outcome}");
    }
}
