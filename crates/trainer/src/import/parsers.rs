//! Settings files that are nearly right: read or refused, and nothing else.

use super::Import;
use crate::finetune::FinetuneArgs;
use halfbyte_testkit::{
    Dice, grown, mutate,
    readers::{self, Scratch},
};
use serde_json::{Value, json};

const YAML: [&str; 3] = [
    "base_model: a/b\nload_in_4bit: true\nadapter: qlora\nlora_r: 8\nlora_target_modules:\n  - a\n  - b\ndatasets:\n  - path: rows.jsonl\n    type: alpaca\nval_set_size: 0.05\nlearning_rate: 2e-4\n",
    "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\ndataset: identity,rows\ntemplate: llama3\ncutoff_len: 2048\nnum_train_epochs: 3.0\nbf16: true\n",
    "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\nlora_r: 16\npacking: true\nlearning_rate: 1.0e-4\nreport_to: [none]\n",
];
const TOML: &str = "model = \"a/b\"\ndata = \"rows.jsonl\"\nrank = 8\nlora_alpha = 16\nlearning_rate = 1e-4\nshuffle = true\ntarget_modules = \"all-linear\"\noutput = \"run\"\n";

/// Settings of each program, with more of their keys.
fn settings() -> [Value; 3] {
    let axolotl = json!({ "base_model": "a/b", "load_in_4bit": true, "adapter": "qlora", "lora_r": 8, "lora_alpha": 16,
        "lora_target_modules": ["a", "b"], "lora_target_linear": true, "sequence_len": 2048, "sample_packing": true, "val_set_size": 0.05,
        "datasets": [{ "path": "rows.jsonl", "type": "alpaca" }, { "path": "c/d", "name": "e", "split": "test", "type": "chat_template",
            "field_messages": "turns", "message_property_mappings": { "role": "from", "content": "value" } },
            { "path": "json", "data_files": ["x.jsonl", "y.jsonl"], "type": "completion", "field": "text" },
            { "path": "g/h", "type": { "field_instruction": "q", "field_output": "a", "field_input": "i", "format": "{instruction}" } }],
        "test_datasets": [{ "path": "held.jsonl", "split": "train", "type": "alpaca" }], "pretraining_dataset": "p/q",
        "micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_epochs": 3, "optimizer": "paged_adamw_8bit", "learning_rate": 2e-4,
        "lr_scheduler": "cosine", "warmup_ratio": 0.1, "warmup_steps": 10, "bf16": "auto", "gradient_checkpointing": true,
        "wandb_project": null, "special_tokens": { "pad_token": "<pad>" }, "train_on_inputs": false, "chat_template": "chatml",
        "output_dir": "run", "save_steps": 0.5, "eval_steps": 10, "flash_attention": true, "lora_on_cpu": true, "deepspeed": "zero3.json" });
    let factory = json!({ "model_name_or_path": "a/b", "stage": "sft", "do_train": true, "finetuning_type": "lora", "lora_rank": 8,
        "lora_target": "all", "dataset": "identity,rows", "eval_dataset": "rows", "dataset_dir": ".", "template": "llama3",
        "cutoff_len": 2048, "num_train_epochs": 3.0, "bf16": true, "quantization_bit": 4, "quantization_method": "bnb",
        "max_samples": 1000, "val_size": 0.1, "per_device_train_batch_size": 1, "lr_scheduler_type": "cosine", "plot_loss": true });
    let trl = json!({ "model_name_or_path": "a/b", "dataset_name": "c/d", "dataset_config": "e", "dataset_train_split": "train",
        "use_peft": true, "lora_r": 16, "lora_target_modules": "all-linear", "packing": true, "learning_rate": 1.0e-4, "report_to": ["none"],
        "datasets": [{ "path": "x/y", "name": "z", "split": "train[:10%]" }], "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
        "model_init_kwargs": { "dtype": "bfloat16" }, "max_length": 1024, "eval_strategy": "steps", "eos_token": "<|im_end|>" });
    [axolotl, factory, trl]
}

/// What may stand beside, or in the place of others.
fn choices() -> Value {
    let columns = json!({ "path": "a/b", "type": { "field_instruction": "q", "system_prompt": "s" }, "message_field_role": "from",
        "message_field_content": "value", "roles_to_train": ["assistant"], "train_on_eos": "turn", "roles": { "user": ["human"] },
        "field_messages": ["m"], "field": "t", "message_property_mappings": { "role": "from", "content": "value", "system": "x" } });
    json!({ "datasets": [[columns], "rows.jsonl", [{ "type": "alpaca" }], [{ "path": "a", "data_files": "b.jsonl", "type": "completion" }]],
        "dataset": ["a/b", "rows", ["identity", "rows"], 3], "eval_dataset": ["held.jsonl", "nowhere"], "plugins": [["a.liger.B"], ["c"]],
        "cosine_min_lr_ratio": [0.1, null], "batch_size": [8, 7, "a"], "micro_batch_size": [0, 2], "gradient_accumulation_steps": [null, 4],
        "chat_template": ["jinja", "tokenizer_default", "chatml", null], "chat_template_jinja": ["{{ messages }}"], "packing": ["true", "false", "yes"],
        "lr_scheduler_kwargs": [{ "min_lr": 0.1 }], "special_tokens": [{}, { "eos_token": "</s>" }], "wandb_project": ["w"], "strict": [false],
        "optim": ["adamw_8bit", "sgd"], "report_to": ["wandb", ["none"]], "stage": ["dpo", "pt"], "rl": ["dpo"], "template": ["qwen", "made"],
        "lora_target": ["q_proj,v_proj", ["q_proj"]], "fp16": [true, "auto"], "tf32": [true], "seed": [42, -1, 1.5], "adapter": ["lora", "qlora", null],
        "load_in_8bit": [true], "val_size": [0.1, 10], "max_steps": [-1, 5], "save_strategy": ["no", "epoch"], "deepspeed": ["a.json"],
        "train_on_prompt": [true], "train_on_inputs": [true, false], "mask_history": [true], "ddp_timeout": [1], "overwrite_cache": [true] })
}

/// A table of settings as YAML, as its authors write it or in the way of JSON.
fn grown_yaml(dice: &mut Dice, all: &[Value]) -> Vec<u8> {
    let value = dice.one_of(all).clone();
    let value = mutate::with(dice, &value, &choices());
    let changed = if dice.once_in(3) { value } else { mutate::json(dice, &value) };
    let text = if dice.once_in(4) { changed.to_string() } else { grown::yaml(dice, &changed) };
    if dice.once_in(4) { mutate::bytes(dice, text.as_bytes()) } else { text.into_bytes() }
}

#[test]
fn settings_of_other_programs() {
    let (scratch, all) = (Scratch::new(), settings());
    let text = json!({ "file_name": "t.jsonl", "columns": { "prompt": "body", "images": "i" } });
    let column = json!({ "prompt": "q", "response": "a", "query": "", "messages": "turns", "system": "s" });
    let sets = json!({ "text": text, "identity": { "file_name": "identity.json", "columns": column }, "rows": { "hf_hub_url": "c/d", "subset": "e",
        "split": "train", "formatting": "sharegpt", "columns": { "messages": "m" }, "tags": { "role_tag": "r", "content_tag": "c" } } });
    readers::tries("YAML of other programs", 300, |dice| {
        let good = dice.one_of(&YAML).as_bytes();
        let text = if dice.once_in(3) { mutate::bytes(dice, good) } else { grown_yaml(dice, &all) };
        let registered = if dice.once_in(2) { sets.to_string().into_bytes() } else { mutate::document(dice, &sets) };
        scratch.write("dataset_info.json", &registered);
        let path = scratch.write("settings", &text);
        if let Ok(imported) = Import::of(&path) {
            drop(imported.toml(&path));
        }
    });
}

#[test]
fn settings_of_our_own() {
    let scratch = Scratch::new();
    let keys = json!({ "model": "a/b", "data": ["rows.jsonl", "more.jsonl"], "rank": 8, "lora_alpha": 16.0, "learning_rate": 1e-4,
        "shuffle": true, "target_modules": "all-linear", "output": "run", "epochs": 2.5, "eval-data": "held.jsonl", "save_steps": 10 });
    // Where a key may say more than its flag.
    let more = json!({ "target_modules": [["a", "b"], "a,b"], "rank_pattern": [{ "q_proj": 4 }, "q=4", ["q=4"]], "alpha_pattern": [{ "v": 2.5 }],
        "lr_scheduler_kwargs": [{ "min_lr": 0.1 }, "{}"], "layers_to_transform": [[1, 2], "1,2", true, [[1]]], "modules_to_save": [["lm_head"]],
        "data": ["one.jsonl", [], ["a", "b"]], "eval_data": [["a", "b"], "c"], "rank": ["a", 1.5], "columns": [{ "prompt": "q" }, "prompt=q"] });
    readers::tries("TOML", 300, |dice| {
        let table = mutate::with(dice, &keys, &more);
        let table = if dice.once_in(2) { mutate::json(dice, &table) } else { table };
        let table = toml::Value::try_from(table).and_then(|it| toml::to_string(&it));
        let whole = table.ok().filter(|_| dice.once_in(2)).unwrap_or_else(|| TOML.to_owned());
        let text = if dice.once_in(3) { whole.into_bytes() } else { mutate::bytes(dice, whole.as_bytes()) };
        let name = if dice.once_in(50) { "settings.yaml" } else { "settings" };
        let path = scratch.write(name, &text);
        drop(FinetuneArgs { config: Some(path), ..FinetuneArgs::default() }.with_file());
    });
}
