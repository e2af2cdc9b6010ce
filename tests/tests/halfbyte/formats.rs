//! Every format of the base, every type to compute in, every shape of adapter: it trains, and can be used again.

use e2e::{TinyModel, Work};

/// Trains with these flags and evaluates the result; the flags that describe the base come from the record beside the adapter.
#[track_caller]
fn trains(flags: &str) {
    let work = Work::new();
    let rows = work.rows();
    let run = work.finetune().without(&["--method"]).path("--eval-data", &rows).flags("--max-steps 8").flags(flags);
    let folder = run.done();
    let summary = run.summary();
    let (before, after) = (summary["eval_loss_before"].as_f64().unwrap(), summary["eval_loss_after"].as_f64().unwrap());
    assert!(after < before - 0.1, "{flags}: {before} -> {after}");
    let base = work.model(&TinyModel::llama());
    if !flags.contains("dtype") && !flags.contains("16") {
        assert_eq!(work.loss(&base, Some(&folder), "--max-length 16 --batch-size 2"), after, "{flags}");
    }
}

#[test]
fn four_bit_floats_train() {
    trains("--quant fp4");
}

#[test]
fn four_bit_integers_train() {
    trains("--quant int4 --double-quant off --block-size 128");
}

#[test]
fn eight_bit_integers_train() {
    trains("--quant int8");
}

#[test]
fn a_base_as_loaded_trains() {
    trains("--quant none --method lora");
}

#[test]
fn activations_in_bf16_train() {
    trains("--compute-dtype bf16");
}

#[test]
fn activations_in_f16_train() {
    trains("--compute-dtype f16");
}

#[test]
fn the_flags_of_transformers_for_the_compute_type_are_known() {
    let work = Work::new();
    let short = work.finetune().without(&["--compute-dtype"]).flags("--bf16");
    let long = work.finetune().flags("--compute-dtype bf16").output(&work.path("other"));
    short.done();
    long.done();
    assert_eq!(short.adapter_bytes(), long.adapter_bytes());
}

#[test]
fn patterns_and_rank_stabilised_scaling_are_loaded_as_they_were_trained() {
    trains("--use-rslora --rank-pattern q_proj=2,down_proj=6 --alpha-pattern v_proj=3");
}

#[test]
fn the_settings_of_tutorials_train() {
    trains("--rank 4 --lora-alpha 16 --target-modules q_proj,k_proj,v_proj --lora-dropout 0.1");
}
