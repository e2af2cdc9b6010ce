//! The road itself: rows in, an adapter out.

use e2e::{Family, Finetune, ROWS, Tensors, TinyModel, Work, write_jsonl, write_parquet};
use serde_json::{Value, json};
use std::fs;

/// Trains for twelve steps with held-out rows that are the training rows, and looks at everything in the folder.
fn learns(model: &TinyModel) {
    let work = Work::new();
    let rows = work.rows();
    let base = work.model(model);
    let run = Finetune::new(&base, &rows, &work.path("run")).flags("--max-steps 12").path("--eval-data", &rows);
    let folder = run.done();

    let losses = run.losses();
    assert_eq!(losses.len(), 12);
    let (first, last) = (mean(&losses[..4]), mean(&losses[8..]));
    assert!(last < first - 0.3, "the loss of the same rows falls: {losses:?}");

    let summary = run.summary();
    let number = |key: &str| summary[key].as_f64().unwrap_or_else(|| panic!("{key} in {summary:#}"));
    assert!(number("eval_loss_after") < number("eval_loss_before") - 0.3);
    assert_eq!(number("train_loss_last") as f32, losses[11] as f32);
    for key in ["tokens_per_second", "peak_rss_mib", "planned_bytes", "seconds_to_first_step", "wall_seconds"] {
        assert!(number(key) > 0.0, "{key}");
    }
    assert_eq!(number("trainable_parameters"), adapter_parameters(model, 4) as f64);
    assert_eq!(number("total_parameters"), (model.parameters() + adapter_parameters(model, 4)) as f64);

    assert_adapter_file(model, &Tensors::read(&folder.join("adapter_model.safetensors")));
    let config: Value = serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((config["peft_type"].as_str(), config["task_type"].as_str()), (Some("LORA"), Some("CAUSAL_LM")));
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_u64()), (Some(4), Some(8)));
    assert_eq!(config["base_model_name_or_path"].as_str(), base.to_str());
    for name in ["tokenizer.json", "tokenizer_config.json", "config.toml"] {
        assert!(folder.join(name).exists(), "{name}");
    }

    let before = work.loss(&base, None, "--quant nf4 --max-length 16 --batch-size 2");
    let after = work.loss(&base, Some(&folder), "--max-length 16 --batch-size 2");
    assert_eq!(
        (before, after),
        (number("eval_loss_before"), number("eval_loss_after")),
        "eval says what finetune said"
    );
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// PEFT's count: for each adapted layer, A of `(rank, in)` and B of `(out, rank)`.
fn adapter_parameters(model: &TinyModel, rank: usize) -> usize {
    model.linears().iter().map(|(_, [out, inner])| rank * (out + inner)).sum()
}

fn assert_adapter_file(model: &TinyModel, file: &Tensors) {
    let mut expected = Vec::new();
    for (path, [out, inner]) in model.linears() {
        expected.push((format!("base_model.model.{path}.lora_A.weight"), vec![4, inner]));
        expected.push((format!("base_model.model.{path}.lora_B.weight"), vec![out, 4]));
    }
    expected.sort();
    let found: Vec<(String, Vec<usize>)> = file.0.iter().map(|(name, it)| (name.clone(), it.0.clone())).collect();
    assert_eq!(found, expected);
    for (name, (_, values)) in &file.0 {
        assert!(values.iter().any(|it| *it != 0.0), "{name} was trained");
    }
}

#[test]
fn a_llama_learns_its_rows_and_leaves_an_adapter_in_pefts_format() {
    learns(&TinyModel::llama());
}

#[test]
fn a_gpt_neo_learns_its_rows_and_leaves_an_adapter_in_pefts_format() {
    learns(&TinyModel::gpt_neo());
}

#[test]
fn a_logged_step_has_the_keys_that_scripts_read() {
    let work = Work::new();
    let run = work.finetune().flags("--max-steps 5 --logging-steps 2");
    run.done();
    let lines = run.metrics();
    let steps: Vec<u64> = lines.iter().map(|it| it["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4, 5], "every second step, and the last");
    for line in &lines {
        for key in ["loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds"] {
            assert!(line[key].as_f64().is_some_and(|it| it > 0.0), "{key} in {line}");
        }
    }
}

#[test]
fn what_a_run_takes_from_its_files_is_said_and_written_down() {
    let work = Work::new();
    let folder = work.model(&TinyModel { tied: false, ..TinyModel::of(Family::Qwen2) });
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 2.0 });
    fs::write(&path, config.to_string()).unwrap();
    fs::write(folder.join("generation_config.json"), json!({ "eos_token_id": [0, 3] }).to_string()).unwrap();
    let data = work.path("ins.jsonl");
    fs::write(&data, "{\"instruction\": \"the cat\", \"output\": \"sat on\"}\n".repeat(4)).unwrap();
    let run = work.finetune().path("--model", &folder).path("--data", &data).flags("--quant nf4");
    let said = run.run().success();
    let used = &run.summary()["used"];
    assert_eq!(used["columns"], "columns instruction, output");
    assert_eq!(used["template"], "### Instruction:\n{instruction}\n\n### Response:\n{output}");
    assert_eq!(used["append_eos"], true);
    assert_eq!((&used["bos"], &used["eos"]), (&json!(null), &json!({ "id": 0, "token": "</s>" })));
    assert_eq!((&used["end_ids"], &used["before_text"]), (&json!([0, 3]), &json!([])));
    assert_eq!(used["architecture"], "Qwen2ForCausalLM");
    assert_eq!((&used["rope"], &used["tied_head"]), (&json!("linear (factor 2), theta 10000"), &json!(false)));
    assert!(used["windows"][0].is_null() && used["windows"][1].is_u64(), "{used}");
    assert_eq!(used["kept_dense"], json!(["lm_head"]));
    for part in ["{instruction}", "eos </s> (0)", "texts end at 0, 3", "linear (factor 2)", "kept dense: lm_head"] {
        assert!(said.stderr.contains(part), "{part}: {said}");
    }
}

#[test]
fn parquet_and_json_lines_give_the_same_adapter() {
    let work = Work::new();
    let from_lines = work.finetune();
    from_lines.done();
    let parquet = work.path("rows.parquet");
    write_parquet(&parquet, &ROWS.map(Some));
    let from_parquet = work.finetune().path("--data", &parquet).output(&work.path("other"));
    from_parquet.done();
    assert_eq!(from_lines.adapter_bytes(), from_parquet.adapter_bytes());
}

#[test]
fn shards_with_an_index_load_like_one_file() {
    let work = Work::new();
    let whole = TinyModel { bf16: true, tied: false, seed: 7, ..TinyModel::llama() };
    let one = work.finetune().path("--model", work.model(&whole));
    one.done();
    let sharded = work.path("sharded");
    TinyModel { shards: 3, ..whole }.write(&sharded);
    let many = work.finetune().path("--model", &sharded).output(&work.path("other"));
    many.done();
    assert_eq!(one.adapter_bytes(), many.adapter_bytes());
}

#[test]
fn null_and_empty_rows_are_counted_and_reported() {
    let work = Work::new();
    let data = work.path("gaps.parquet");
    write_parquet(&data, &[Some(ROWS[0]), None, Some(ROWS[1]), Some("  "), None, Some(ROWS[2])]);
    let outcome = work.finetune().path("--data", &data).run().success();
    for part in ["2 of 6 rows are null", "1 of 6 rows are empty"] {
        assert!(outcome.stderr.contains(part), "`{part}`: {outcome}");
    }
    let report = &work.finetune().summary()["data"];
    assert_eq!((report["rows_used"].as_u64(), report["null"].as_u64()), (Some(3), Some(2)));
}

#[test]
fn rows_can_be_chosen_and_a_column_named() {
    let work = Work::new();
    let all = work.path("all.jsonl");
    let lines: String = ROWS.iter().map(|it| format!("{{\"review\": \"{it}\"}}\n")).collect();
    fs::write(&all, lines).unwrap();
    let chosen = work.finetune().path("--data", &all).flags("--text-column review --rows 2..5");
    chosen.done();
    let three = work.path("three.jsonl");
    write_jsonl(&three, &[ROWS[2], ROWS[3], ROWS[4]].map(Some));
    let alone = work.finetune().path("--data", &three).output(&work.path("other"));
    alone.done();
    assert_eq!(chosen.adapter_bytes(), alone.adapter_bytes());
}

#[test]
fn an_adapter_can_be_the_start_of_the_next_run() {
    let work = Work::new();
    let rows = work.rows();
    let first = work.finetune().path("--eval-data", &rows);
    let folder = first.done();
    let second = first.clone().path("--init-adapter", &folder).output(&work.path("second"));
    second.done();
    assert_eq!(second.summary()["eval_loss_before"], first.summary()["eval_loss_after"]);
    assert!(second.summary()["eval_loss_after"].as_f64() < first.summary()["eval_loss_after"].as_f64());
}

#[test]
fn biases_and_whole_modules_train_along_and_are_saved_by_pefts_names() {
    let work = Work::new();
    let model = TinyModel { attention_bias: true, tied: false, ..TinyModel::llama() };
    let base = work.model(&model);
    let rows = work.rows();
    let run = work
        .finetune()
        .path("--model", &base)
        .path("--eval-data", &rows)
        .flags("--bias lora_only --target-modules q_proj,v_proj --modules-to-save lm_head,model.norm");
    let folder = run.done();
    let file = Tensors::read(&folder.join("adapter_model.safetensors"));
    let shape = |name: &str| file.0.get(&format!("base_model.model.{name}")).map(|it| it.0.clone());
    assert_eq!(shape("model.layers.1.self_attn.q_proj.base_layer.bias"), Some(vec![32]));
    assert_eq!(shape("model.layers.0.self_attn.v_proj.lora_B.weight"), Some(vec![16, 4]));
    assert_eq!(shape("lm_head.weight"), Some(vec![e2e::VOCAB, 32]));
    assert_eq!(shape("model.norm.weight"), Some(vec![32]));
    assert_eq!(file.0.len(), 2 * 2 * 3 + 2, "and nothing else: {:?}", file.0.keys());
    let again = work.loss(&base, Some(&folder), "--max-length 16 --batch-size 2");
    assert_eq!(Some(again), run.summary()["eval_loss_after"].as_f64(), "all of it is loaded again");
}

#[test]
fn a_profile_says_where_the_time_of_the_steps_goes() {
    let work = Work::new();
    let run = work.finetune().flags("--profile");
    let table = run.run().success().stderr;
    assert!(table.contains("lora_linear") && table.contains("GFLOP/s"), "{table}");
    let text = std::fs::read_to_string(run.folder().join("profile.json")).unwrap();
    let profile: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(profile.to_string().contains("cross_entropy"), "{profile}");
}

#[test]
fn full_training_leaves_a_model_folder() {
    let work = Work::new();
    let rows = work.rows();
    let run = work
        .finetune()
        .flags("--method full --quant none --learning-rate 1e-3 --save-dtype f32")
        .path("--eval-data", &rows);
    let folder = run.done();
    assert!(!folder.join("adapter_config.json").exists());
    let again = work.loss(&folder, None, "--max-length 16 --batch-size 2");
    assert_eq!(Some(again), run.summary()["eval_loss_after"].as_f64());
    assert_eq!(run.summary()["trainable_parameters"].as_u64(), Some(TinyModel::llama().parameters() as u64));
}

#[test]
fn the_trainable_share_and_the_memory_plan_are_printed_as_people_know_them() {
    let work = Work::new();
    let outcome = work.finetune().run().success();
    let (trainable, total) = (
        adapter_parameters(&TinyModel::llama(), 4),
        TinyModel::llama().parameters() + adapter_parameters(&TinyModel::llama(), 4),
    );
    let share = 100.0 * trainable as f64 / total as f64;
    let group = |n: usize| format!("{},{:03}", n / 1000, n % 1000);
    let line =
        format!("trainable params: {} || all params: {} || trainable%: {share:.4}", group(trainable), group(total));
    for part in [line.as_str(), "frozen matrices", "optimizer state", "planned in all", "peak memory"] {
        assert!(outcome.stderr.contains(part), "`{part}`: {outcome}");
    }
}

/// A head of its own is a weight, a gradient and two moments more, and one gradient less on the way to the embedding.
#[test]
fn the_plan_knows_that_a_tied_embedding_gets_two_gradients() {
    let work = Work::new();
    let [tied, untied] = [true, false].map(|tied| {
        let base = work.model(&TinyModel { tied, ..TinyModel::llama() });
        let run = Finetune::new(&base, &work.rows(), &work.path(if tied { "tied" } else { "untied" }))
            .without(&["--method", "--quant", "--rank", "--lora-alpha", "--target-modules"])
            .flags("--method full --max-steps 1");
        run.done();
        run.summary()["planned_bytes"].as_u64().unwrap()
    });
    let head = TinyModel { tied: false, ..TinyModel::llama() }.parameters() - TinyModel::llama().parameters();
    assert_eq!(untied - tied, (16 - 4) * head as u64);
}
