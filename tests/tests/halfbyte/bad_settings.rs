//! Settings that cannot be, adapters that do not fit, folders that are taken.

use e2e::{Family, Outcome, TinyModel, Work, run};
use std::{ffi::OsString, fs};

#[track_caller]
fn refused(flags: &str, parts: &[&str]) -> Outcome {
    let work = Work::new();
    let outcome = work.finetune().flags(flags).run().user_error(parts);
    let folder = work.path("run");
    assert!(!folder.exists() || work.contents(&folder).is_empty(), "nothing was written");
    outcome
}

#[test]
fn target_modules_without_a_match() {
    let work = Work::new();
    let outcome = work
        .finetune()
        .path("--model", work.model(&TinyModel::gpt_neo()))
        .flags("--target-modules query_key_value")
        .run();
    outcome.user_error(&["query_key_value", "q_proj, k_proj, v_proj", "out_proj", "c_fc", "c_proj"]);
    refused("--target-modules c_fc", &["c_fc", "up_proj", "down_proj"]);
    refused("--target-modules .*(q_proj", &["not a regular expression"]);
    refused("--modules-to-save classifier", &["classifier", "embed_tokens"]);
}

#[test]
fn names_that_mean_nothing_beside_others_that_do() {
    refused("--target-modules q_proj,v_porj", &["target_modules v_porj", "q_proj, k_proj, v_proj"]);
    refused("--target-modules q_proj,self_attn.up_proj", &["self_attn.up_proj", "up_proj"]);
    // The tied head is the embedding, and cannot be adapted.
    refused("--target-modules q_proj,lm_head", &["target_modules lm_head", "q_proj"]);
    refused("--rank-pattern q_porj=4", &["rank_pattern names `q_porj`", "q_proj"]);
    refused("--rank-pattern q_proj=2,layers.7.*=4", &["rank_pattern names `layers.7.*`"]);
    refused("--alpha-pattern nothing=4", &["alpha_pattern names `nothing`", "q_proj"]);
    refused("--exclude-modules k_proj,q_porj", &["exclude_modules names `q_porj`", "q_proj"]);
    refused("--exclude-modules .*[.]porj", &["exclude_modules names `.*[.]porj`", "q_proj"]);
    refused("--target-parameters nothing", &["target_parameters names `nothing`", "q_proj.weight"]);
    let work = Work::new();
    let right = "--target-modules q_proj,self_attn.v_proj,embed_tokens --rank-pattern q_proj=2,layers.0.*=3 \
                 --alpha-pattern v_proj=4 --exclude-modules k_proj,lm_head --target-parameters up_proj.weight";
    work.finetune().flags(right).done();
    let base = work.model(&TinyModel::llama());
    let inspect = ["inspect", "--target-modules", "q_proj,v_porj", "--model"].map(OsString::from);
    run(inspect.into_iter().chain([base.into()])).user_error(&["v_porj", "v_proj"]);
}

#[test]
fn names_of_experts_mean_what_they_are_today() {
    let work = Work::new();
    let command = |family| {
        let model = work.model(&TinyModel::of(family));
        work.finetune().path("--model", model).output(&work.path(&format!("{family:?}")))
    };
    command(Family::Mixtral).flags("--target-modules q_proj,w1,w2,w3,gate --exclude-modules k_proj").done();
    let wrong = command(Family::Mixtral).flags("--overwrite --target-modules q_proj,w4").run();
    wrong.user_error(&["target_modules w4", "q_proj"]);
    // There they have always been parameters, so as modules they would be passed over.
    let wrong = command(Family::GptOss).flags("--target-modules q_proj,gate_up_proj").run();
    wrong.user_error(&["target_modules gate_up_proj", "q_proj"]);
}

#[test]
fn names_in_an_adapters_file_may_mean_nothing_as_in_peft() {
    let work = Work::new();
    let adapter = work.finetune().flags("--target-modules q_proj,v_proj").done();
    let file = adapter.join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["target_modules"] = serde_json::json!(["q_proj", "v_proj", "Wqkv"]);
    config["rank_pattern"] = serde_json::json!({ "Wqkv": 2 });
    config["exclude_modules"] = serde_json::json!(["vision"]);
    fs::write(&file, config.to_string()).unwrap();
    work.eval(&work.model(&TinyModel::llama()), Some(&adapter), "").success();
    work.finetune().path("--init-adapter", &adapter).output(&work.path("next")).done();
}

#[test]
fn a_rank_of_zero() {
    refused("--rank 0", &["rank must be at least 1"]);
}

#[test]
fn a_rank_above_the_matrix_only_warns() {
    let work = Work::new();
    let run = work.finetune().flags("--rank 40");
    let outcome = run.run().success();
    assert!(
        outcome.stderr.contains("warning: rank 40 is above the rank of model.layers.0.self_attn.q_proj (32 x 32)"),
        "{outcome}"
    );
    assert!(!run.adapter_bytes().is_empty());
}

#[test]
fn settings_outside_their_range() {
    refused("--lora-dropout 1", &["lora_dropout"]);
    refused("--lora-alpha 0", &["lora_alpha"]);
    refused("--max-steps 0", &["--max-steps"]);
    refused("--learning-rate nan", &["--learning-rate"]);
    refused("--per-device-train-batch-size 0", &["--per-device-train-batch-size"]);
    refused("--per-device-train-batch-size 9 --drop-last", &["8 examples make no batch of 9"]);
    refused("--per-device-train-batch-size 5 --drop-last --packing", &["4 packed rows make no batch of 5"]);
    refused("--packing perhaps", &["--packing", "perhaps", "on, off"]);
    refused("--gradient-accumulation-steps 0", &["--gradient-accumulation-steps"]);
    refused("--block-size 63", &["block", "63"]);
    refused("--threads 0", &["--threads"]);
    refused("--threads 100000", &["--threads", "1024"]);
    refused("--eval-labels a,b", &["--eval-labels", "--eval-data"]);
    refused("--samples 3", &["--samples", "--eval-data"]);
    refused("--eval-steps 3", &["--eval-steps", "--eval-data"]);
    refused("--load-best-model-at-end", &["--load-best-model-at-end", "--eval-data"]);
    refused("--early-stopping-patience 3", &["--early-stopping-patience", "--eval-data"]);
    refused("--early-stopping-patience 0", &["--early-stopping-patience", "at least 1"]);
    refused(
        "--early-stopping-patience 1 --early-stopping-threshold nan",
        &["--early-stopping-threshold", "at least 0"],
    );
    refused("--early-stopping-threshold 1", &["--early-stopping-patience"]);
    refused("--max-minutes 0", &["--max-minutes", "above 0"]);
    refused("--logging-steps 0", &["--logging-steps", "at least 1"]);
    refused("--save-steps often", &["--save-steps", "4/epoch"]);
    refused("--lr-scheduler-kwargs 3", &["--lr-scheduler-kwargs", "JSON object"]);
    refused("--quant nf5", &["nf5", "nf4"]);
    refused("--rank many", &["many", "--rank"]);
}

#[test]
fn optimizer_settings_outside_their_range() {
    refused("--adam-beta1 1.5", &["--adam-beta1", "below 1", "1.5"]);
    refused("--adam-beta2 nan", &["--adam-beta2"]);
    refused("--adam-epsilon 0", &["--adam-epsilon", "above 0"]);
    refused("--weight-decay inf", &["--weight-decay"]);
    refused("--max-grad-norm nan", &["--max-grad-norm"]);
    refused("--max-grad-norm=-1", &["--max-grad-norm", "at least 0"]);
    refused("--optim-resident-mib 0", &["--optim-resident-mib", "above 0"]);
}

#[test]
fn qlora_without_quantisation_is_a_contradiction() {
    refused("--method qlora --quant none", &["--method qlora", "--quant is none"]);
    refused("--method lora --quant nf4", &["--method lora", "--quant"]);
    refused("--method full --quant nf4", &["--method full", "--quant"]);
}

#[test]
fn more_accumulation_than_rows_is_an_epoch_a_step() {
    let work = Work::new();
    let run = work.finetune().flags("--gradient-accumulation-steps 1000000000000 --max-steps 2");
    run.done();
    assert_eq!(run.losses().len(), 2);
}

#[test]
fn a_flag_that_is_needed() {
    let work = Work::new();
    for flag in ["--model", "--data", "--output"] {
        work.finetune().without(&[flag]).run().user_error(&[flag, "is missing"]);
    }
}

#[test]
fn an_output_folder_that_is_not_empty_is_kept() {
    let work = Work::new();
    let folder = work.path("run");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("thesis.txt"), "years of work").unwrap();
    work.finetune().run().user_error(&["run", "is not empty", "--overwrite"]);
    assert_eq!(work.contents(&folder), [("thesis.txt".into(), b"years of work".to_vec())]);
    work.finetune().flags("--overwrite").done();
    assert_eq!(fs::read(folder.join("thesis.txt")).unwrap(), b"years of work", "what is not ours stays");
    work.finetune().flags("--overwrite --resume").run().user_error(&["--overwrite", "--resume"]);
}

#[test]
fn overwriting_replaces_an_earlier_run_only_when_the_new_one_can_begin() {
    let work = Work::new();
    let folder = work.finetune().flags("--save-steps 2").done();
    let before = work.contents(&folder);
    let mistakes = [
        "--target-modules query_key_value",
        "--rank 0",
        "--text-column review",
        "--init-adapter nowhere",
        "--modules-to-save classifier",
    ];
    for mistake in mistakes {
        work.finetune().flags("--overwrite").flags(mistake).run().user_error(&[]);
        assert!(work.contents(&folder) == before, "{mistake}: the earlier run's files are as they were");
    }
    work.finetune().flags("--overwrite --seed 7").done();
    assert!(work.contents(&folder) != before);
}

#[test]
fn an_output_that_is_a_file() {
    let work = Work::new();
    fs::write(work.path("run"), "a file").unwrap();
    work.finetune().run().user_error(&["run", "folder"]);
    assert_eq!(fs::read(work.path("run")).unwrap(), b"a file");
}

#[test]
fn a_checkpoint_of_another_run() {
    let work = Work::new();
    let folder = work.finetune().flags("--save-steps 2").done();
    let before = work.contents(&folder);
    let resume = |flags: &str| work.finetune().flags("--resume --max-steps 8").flags(flags).run();
    for (flags, key) in [
        ("--rank 8", "rank"),
        ("--learning-rate 1e-3", "learning_rate"),
        ("--seed 7", "seed"),
        ("--quant fp4", "quant"),
    ] {
        resume(flags).user_error(&["checkpoint-4", "of another run", key, "--overwrite"]);
        assert!(work.contents(&folder) == before, "{flags}: the run's files are as they were");
    }
    e2e::write_jsonl(&work.path("less.jsonl"), &[Some(e2e::ROWS[0]); 3]);
    let other_rows = work.finetune().flags("--resume --max-steps 8").path("--data", work.path("less.jsonl")).run();
    other_rows.user_error(&["of another run"]);
    resume("").success();
}

#[test]
fn resuming_where_there_is_nothing() {
    let work = Work::new();
    work.finetune().flags("--resume").run().user_error(&["--resume", "no checkpoint"]);
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let work = Work::new();
    let folder = work.finetune().flags("--save-steps 2").done();
    let file = folder.join("checkpoint-4/training_state.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 8]).unwrap();
    let outcome = work.finetune().flags("--resume --max-steps 8").run();
    outcome.user_error(&["checkpoint-4", "training_state.safetensors", "remove this checkpoint"]);
    fs::remove_dir_all(folder.join("checkpoint-4")).unwrap();
    work.finetune().flags("--resume --max-steps 8").done();
}

#[test]
fn cuda_where_there_is_none() {
    let work = Work::new();
    // With a driver this hides its devices; without one it changes nothing.
    let mut command = work.finetune().flags("--device cuda").command();
    let outcome = Outcome::of(command.env("CUDA_VISIBLE_DEVICES", ""));
    outcome.user_error(&["CUDA", "--device cpu"]);
    assert!(!work.path("run").exists());
    work.finetune().flags("--device cpu").done();
}

#[test]
fn an_adapter_of_another_architecture() {
    let work = Work::new();
    let adapter = work.finetune().done();
    let neo = work.model(&TinyModel::gpt_neo());
    work.eval(&neo, Some(&adapter), "").user_error(&["adapter_model.safetensors", "another architecture"]);
    let by_name = work.finetune().flags("--target-modules q_proj,v_proj").output(&work.path("by-name")).done();
    work.eval(&neo, Some(&by_name), "")
        .user_error(&["adapter_model.safetensors", "transformer.h.0.attn.attention.q_proj.lora_A.weight"]);
}

#[test]
fn an_adapter_folder_that_is_damaged() {
    let work = Work::new();
    let adapter = work.finetune().done();
    let base = work.model(&TinyModel::llama());
    let weights = adapter.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    work.eval(&base, Some(&adapter), "").user_error(&["adapter_model.safetensors", "safetensors file"]);
    fs::remove_file(&weights).unwrap();
    work.eval(&base, Some(&adapter), "").user_error(&["adapter_model.safetensors"]);
    fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    work.eval(&base, Some(&adapter), "").user_error(&["adapter_config.json", "peft_type"]);
    work.eval(&base, Some(&work.path("nowhere")), "").user_error(&["nowhere", "adapter_config.json"]);
}

#[test]
fn the_commands_beside_finetune_judge_their_input_alike() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let arg = |it: &str| OsString::from(it);
    let missing: OsString = work.path("nowhere").into();
    run([arg("inspect"), arg("--model"), missing.clone()]).user_error(&["nowhere", "is not a folder"]);
    run([arg("quantize"), arg("--model"), missing.clone()]).user_error(&["nowhere", "is not a folder"]);
    run([arg("generate"), arg("--model"), missing.clone(), arg("--prompt"), arg("the")]).user_error(&["nowhere"]);
    run([
        arg("merge"),
        arg("--model"),
        base.clone().into(),
        arg("--adapter"),
        missing.clone(),
        arg("--output"),
        work.path("out").into(),
    ])
    .user_error(&["nowhere"]);
    assert!(!work.path("out").exists());
    run([arg("eval"), arg("--model"), base.clone().into(), arg("--data"), missing])
        .user_error(&["nowhere", "no such file"]);
    run([arg("inspect"), arg("--model"), base.into(), arg("--target-modules"), arg("wqkv")])
        .user_error(&["wqkv", "q_proj"]);
}
