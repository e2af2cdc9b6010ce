//! Settings files of other programs, and commands as they are typed there.

use e2e::{ROWS, TinyModel, Work, run, write_jsonl};
use std::{fs, path::Path};

/// What `import-config` prints of a file, and what it warns of.
fn imported(work: &Work, name: &str, text: &str) -> (toml::Table, String) {
    let file = work.path(name);
    fs::write(&file, text).unwrap();
    let outcome = run([Path::new("import-config"), &file]).success();
    (outcome.stdout.parse().unwrap_or_else(|it| panic!("{it}: {outcome}")), outcome.stderr)
}

fn table(text: &str) -> toml::Table {
    text.parse().unwrap()
}

#[test]
fn a_file_of_axolotls() {
    let (found, warnings) = imported(
        &Work::new(),
        "qlora.yml",
        "base_model: org/base-7b\nload_in_8bit: false\nload_in_4bit: true\nadapter: qlora\n\
         datasets:\n  - path: org/rows\n    type: chat_template\n    split: train_sft\n    field_messages: turns\n    \
         message_property_mappings:\n      role: from\n      content: value\n\
         dataset_prepared_path:\nval_set_size: 0\noutput_dir: ./out\nsequence_len: 4096\nsample_packing: true\n\
         lora_r: 32\nlora_alpha: 16\nlora_target_linear: true\nlora_target_modules:\n  - q_proj\n\
         wandb_project: mine\nmicro_batch_size: 2\nbatch_size: 8\nnum_epochs: 3\noptimizer: paged_adamw_32bit\n\
         lr_scheduler: cosine\ncosine_min_lr_ratio: 0.1\nlearning_rate: 2e-4\nbf16: auto\ntf32: false\n\
         gradient_checkpointing: true\nresume_from_checkpoint:\nwarmup_ratio: 0.1\nevals_per_epoch: 0\nsaves_per_epoch: 2\n\
         early_stopping_patience: 3\nspecial_tokens:\n  pad_token: <pad>\n  eos_token: <end>\nflux_capacitor: 88\n",
    );
    assert_eq!(
        found,
        table(
            "model = 'org/base-7b'\nquant = 'nf4'\nmethod = 'qlora'\ndata = 'org/rows:train_sft'\nlayout = 'chat'\n\
             columns = 'messages=turns'\noutput = './out'\nmax_length = 4096\npacking = 'on'\nrank = 32\nlora_alpha = 16.0\n\
             target_modules = 'all-linear'\nper_device_train_batch_size = 2\ngradient_accumulation_steps = 4\n\
             num_train_epochs = 3.0\noptim = 'adamw_torch'\nlr_scheduler_type = 'cosine_with_min_lr'\n\
             lr_scheduler_kwargs = '{\"min_lr_rate\": 0.1}'\nlearning_rate = 2e-4\ngradient_checkpointing = 'on'\n\
             warmup_ratio = 0.1\neval_steps = 0\nsave_steps = '2/epoch'\nearly_stopping_patience = 3\n"
        )
    );
    for words in ["special_tokens.eos_token: \"<end>\" is not set here", "flux_capacitor: is not known here"] {
        assert!(warnings.contains(words), "{warnings}");
    }
    assert!(!warnings.contains("wandb") && !warnings.contains("pad_token"), "{warnings}");
}

#[test]
fn what_trains_where_nothing_is_said() {
    let method = |text: &str| {
        let text = format!("{text}\nlearning_rate: 1e-4\n");
        imported(&Work::new(), "run.yaml", &text).0.get("method").and_then(|it| it.as_str().map(str::to_owned))
    };
    assert_eq!(method("base_model: a/b").as_deref(), Some("full"));
    assert_eq!(method("base_model: a/b\nadapter: lora").as_deref(), Some("lora"));
    assert_eq!(method("base_model: a/b\nadapter: lora\nload_in_8bit: true"), None, "LoRA on int8 is QLoRA here");
    assert_eq!(method("model_name_or_path: a/b\nstage: sft").as_deref(), Some("lora"));
    assert_eq!(method("model_name_or_path: a/b\nstage: sft\nquantization_bit: 4"), None);
    assert_eq!(method("model_name_or_path: a/b\nstage: sft\nfinetuning_type: full").as_deref(), Some("full"));
    assert_eq!(method("model_name_or_path: a/b\ndataset_name: c/d").as_deref(), Some("full"));
    assert_eq!(method("model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\nload_in_4bit: true"), None);
}

#[test]
fn a_file_of_llama_factorys_finds_its_rows_and_trains() {
    let work = Work::new();
    let model = work.model(&TinyModel::llama());
    fs::create_dir(work.path("data")).unwrap();
    fs::write(
        work.path("data/dataset_info.json"),
        r#"{"mine": {"file_name": "mine.jsonl", "columns": {"prompt": "words"}}, "other": {"script_url": "x"}}"#,
    )
    .unwrap();
    let rows: Vec<String> = ROWS.iter().map(|it| it.to_string()).collect();
    let texts: Vec<Option<&str>> = rows.iter().map(|it| Some(it.as_str())).collect();
    write_jsonl(&work.path("data/mine.jsonl"), &texts);
    let renamed = fs::read_to_string(work.path("data/mine.jsonl")).unwrap().replace("\"text\":", "\"words\":");
    fs::write(work.path("data/mine.jsonl"), renamed).unwrap();
    let (found, warnings) = imported(
        &work,
        "pretrain.yaml",
        &format!(
            "model_name_or_path: {}\nstage: pt\ndo_train: true\nfinetuning_type: lora\nlora_rank: 4\nlora_target: all\n\
             dataset: mine,other\ncutoff_len: 16\nmax_samples: 4\noutput_dir: {}\nlogging_steps: 1\nplot_loss: true\n\
             per_device_train_batch_size: 1\nlearning_rate: 1.0e-2\nnum_train_epochs: 1.0\nlr_scheduler_type: cosine\n\
             bf16: false\npure_bf16: false\nddp_timeout: 180000000\nresume_from_checkpoint: null\n",
            model.display(),
            work.path("run").display()
        ),
    );
    assert!(warnings.contains("dataset.other: is fetched by a script"), "{warnings}");
    assert_eq!(found["columns"].as_str(), Some("text=words"));
    assert_eq!(found["lora_alpha"].as_float(), Some(8.0), "there it is twice the rank where it is not given");
    let toml = work.path("run.toml");
    fs::write(&toml, found.to_string()).unwrap();
    run([Path::new("finetune"), Path::new("--config"), &toml]).success();
    let metrics = fs::read_to_string(work.path("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 4, "a step for each of the four rows");
}

#[test]
fn a_file_of_trls() {
    let (found, warnings) = imported(
        &Work::new(),
        "sft.yaml",
        "model_name_or_path: org/base\ndataset_name: org/rows\nuse_peft: true\nlora_r: 8\nlora_alpha: 16\nlearning_rate: 1e-4\n\
         max_length: 1024\npacking: true\nassistant_only_loss: true\neval_strategy: epoch\nsave_strategy: best\n\
         metric_for_best_model: eval_loss\ngreater_is_better: false\nreport_to: [wandb, tensorboard]\n\
         lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs:\n  num_cycles: 2\noutput_dir: out\n",
    );
    assert_eq!(
        found,
        table(
            "model = 'org/base'\ndata = 'org/rows'\nmethod = 'lora'\nrank = 8\nlora_alpha = 16.0\nlearning_rate = 1e-4\n\
             lora_dropout = 0.05\nper_device_train_batch_size = 8\nnum_train_epochs = 3.0\n\
             max_length = 1024\npacking = 'on'\nloss_on = 'assistant'\neval_steps = '1/epoch'\nsave_steps = 0\n\
             load_best_model_at_end = true\nlr_scheduler_type = 'cosine_with_restarts'\n\
             lr_scheduler_kwargs = '{\"num_cycles\":2}'\noutput = 'out'\n"
        )
    );
    assert!(warnings.contains("report_to: nothing is reported over the network"), "{warnings}");
    let bare = "model_name_or_path: a/b\nuse_peft: true\nload_in_4bit: true\n";
    let (found, warnings) = imported(&Work::new(), "bare.yaml", bare);
    assert_eq!(
        found,
        table(
            "model = 'a/b'\nquant = 'nf4'\nmax_length = 1024\nlearning_rate = 2e-5\nrank = 16\nlora_alpha = 32.0\n\
             lora_dropout = 0.05\ndouble_quant = 'off'\nper_device_train_batch_size = 8\nnum_train_epochs = 3.0\n"
        ),
        "what TRL does without being told"
    );
    assert!(warnings.contains("loss_on = \"all\" does as TRL"), "{warnings}");
}

#[test]
fn files_that_cannot_be_taken() {
    let work = Work::new();
    let refused = |text: &str, parts: &[&str]| {
        let file = work.path("run.yaml");
        fs::write(&file, text).unwrap();
        run([Path::new("import-config"), &file]).user_error(&[&["run.yaml"], parts].concat());
    };
    refused("stage: dpo\nmodel_name_or_path: a/b\n", &["stage: dpo", "preferences"]);
    refused("base_model: a/b\nrl: kto\n", &["rl: kto"]);
    refused("a: [1, 2\nb: {", &["no YAML", "line"]);
    refused("- just\n- a list\n", &["one table of settings"]);
    refused("", &["one table of settings"]);
    refused("base_model: a/b\nmodel: c/d\n", &["contradict each other", "--model"]);
    run(["import-config", "no/such.yaml"]).user_error(&["no/such.yaml"]);
    run(["finetune", "--config", work.path("run.yaml").to_str().unwrap()]).user_error(&["import-config"]);
}

/// Commands as the documentation of other programs has them, but for the names: each is taken, up to the model that is not here.
#[test]
fn commands_of_other_programs_are_taken_or_answered() {
    let commands = [
        // transformers' scripts
        "--model_name_or_path nowhere/base --train_file rows.json --do_train --per_device_train_batch_size 8 --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --do_train --do_eval --fp16 --num_train_epochs 3.0 --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --validation_file more.json --eval_strategy steps --eval_steps 50 --load_best_model_at_end True --metric_for_best_model eval_loss --save_total_limit 1 --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --lr_scheduler_type cosine --warmup_ratio 0.03 --weight_decay 0. --adam_beta2 0.95 --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --optim adamw_bnb_8bit --gradient_checkpointing True --gradient_accumulation_steps 4 --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --save_strategy epoch --logging_strategy epoch --report_to none --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --max_steps -1 --seed 7 --data_seed 7 --remove_unused_columns False --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --tf32 True --bf16 True --dataloader_num_workers 4 --group_by_length True --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --warmup_steps 0.1 --logging_first_step --overwrite_output_dir --output_dir out",
        "--model_name_or_path nowhere/base --train_file rows.json --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {\"min_lr_rate\":0.1} --output_dir out",
        // TRL
        "--model_name_or_path nowhere/base --dataset_name org/rows --learning_rate 2.0e-4 --num_train_epochs 1 --packing --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --eos_token <end> --eval_strategy no --use_peft --lora_r 32 --lora_alpha 16 --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --learning_rate 2.0e-5 --max_length 1024 --gradient_checkpointing --logging_steps 25 --eval_strategy steps --eval_steps 100 --eval-data rows.json --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --load_in_4bit --use_peft --lora_target_modules q_proj,v_proj --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --load_in_4bit --bnb_4bit_quant_type nf4 --use_bnb_nested_quant --use_peft --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --assistant_only_loss True --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --completion_only_loss True --dtype bfloat16 --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --dataset_text_field text --padding_free --use_liger_kernel --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --attn_implementation flash_attention_2 --dataset_num_proc 8 --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --chat_template_path chatml --push_to_hub False --output_dir out",
        "--model_name_or_path nowhere/base --dataset_name org/rows --dataset_train_split train --trust_remote_code False --output_dir out",
        // LLaMA-Factory
        "--stage sft --do_train True --model_name_or_path nowhere/base --finetuning_type lora --dataset rows.json --cutoff_len 2048 --output_dir out",
        "--stage sft --do_train --model_name_or_path nowhere/base --finetuning_type lora --lora_rank 8 --lora_target all --dataset rows.json --quantization_bit 4 --quantization_method bnb --output_dir out",
        "--stage sft --model_name_or_path nowhere/base --finetuning_type full --dataset rows.json --pure_bf16 True --output_dir out",
        "--stage pt --model_name_or_path nowhere/base --finetuning_type lora --dataset rows.json --plot_loss True --overwrite_output_dir --output_dir out",
        "--stage sft --model_name_or_path nowhere/base --dataset rows.json --lora_dropout 0.05 --lora_target q_proj,v_proj --additional_target embed_tokens --output_dir out",
        "--stage sft --model_name_or_path nowhere/base --dataset rows.json --max_samples 1000 --preprocessing_num_workers 16 --overwrite_cache --output_dir out",
        "--stage sft --model_name_or_path nowhere/base --dataset rows.json --flash_attn fa2 --packing True --train_on_prompt False --mask_history True --output_dir out",
        "--stage sft --model_name_or_path nowhere/base --dataset rows.json --val_size 0.1 --eval_strategy steps --eval_steps 500 --per_device_eval_batch_size 1 --output_dir out",
        "--stage sft --model_name_or_path nowhere/base --dataset rows.json --adapter_name_or_path nowhere/adapter --ddp_timeout 180000000 --output_dir out",
        "--stage sft --model_name_or_path nowhere/base --dataset rows.json --use_rslora True --pissa_init True --resume_from_checkpoint False --output_dir out",
        // axolotl
        "--base_model nowhere/base --dataset rows.json --adapter qlora --load_in_4bit true --sequence_len 2048 --output_dir out",
        "--base_model nowhere/base --dataset rows.json --adapter lora --load_in_8bit true --lora_r 8 --lora_target_linear true --output_dir out",
        "--base_model nowhere/base --dataset rows.json --micro_batch_size 2 --gradient_accumulation_steps 4 --num_epochs 4 --optimizer adamw_bnb_8bit --output_dir out",
        "--base_model nowhere/base --dataset rows.json --lr_scheduler cosine --learning_rate 0.0002 --warmup_steps 10 --output_dir out",
        "--base_model nowhere/base --dataset rows.json --sample_packing true --pad_to_sequence_len true --eval_sample_packing false --output_dir out",
        "--base_model nowhere/base --dataset rows.json --saves_per_epoch 1 --evals_per_epoch 0 --output_dir out",
        "--base_model nowhere/base --dataset rows.json --bf16 auto --tf32 false --flash_attention true --output_dir out",
        "--base_model nowhere/base --dataset rows.json --train_on_inputs false --group_by_length false --strict false --output_dir out",
        "--base_model nowhere/base --dataset rows.json --eval_dataset more.json --eval_steps 0.1 --early_stopping_patience 3 --output_dir out",
        "--base_model nowhere/base --dataset rows.json --lora_modules_to_save embed_tokens,lm_head --auto_resume_from_checkpoints true --output_dir out",
    ];
    for command in commands {
        let outcome = run([&["finetune"], command.split(' ').collect::<Vec<_>>().as_slice()].concat());
        // Flags come before files; that the model is nowhere is said last of all.
        let answered = outcome.stderr.contains("--eos-token");
        assert!(answered || outcome.stderr.contains("nowhere/"), "{outcome}");
        assert_eq!(outcome.code, Some(2), "{outcome}");
    }
}

#[test]
fn a_file_that_is_there_is_kept() {
    let work = Work::new();
    let file = work.path("lf.yaml");
    let text = "model_name_or_path: a/b\nstage: sft\ndataset_dir: ONLINE\ndataset: c/d\n";
    fs::write(&file, text).unwrap();
    let import = |output: &Path, more: &[&str]| {
        let args = [Path::new("import-config"), &file, Path::new("--output"), output];
        run(args.into_iter().chain(more.iter().map(Path::new)))
    };
    fs::create_dir(work.path("inner")).unwrap();
    for more in [&[][..], &["--overwrite"]] {
        import(&file, more).user_error(&["lf.yaml", "is being read"]);
        import(&work.path("inner/../lf.yaml"), more).user_error(&["lf.yaml", "is being read"]);
        import(&work.path("inner"), more).user_error(&["inner", "is a folder"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    let output = work.path("run.toml");
    fs::write(&output, "rank = 3").unwrap();
    import(&output, &[]).user_error(&["run.toml", "exists", "--overwrite"]);
    assert_eq!(fs::read_to_string(&output).unwrap(), "rank = 3");
    import(&output, &["--overwrite"]).success();
    assert!(fs::read_to_string(&output).unwrap().contains("model = \"a/b\""));
    import(&work.path("new.toml"), &[]).success();
}
