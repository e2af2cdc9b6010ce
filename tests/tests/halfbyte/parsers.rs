//! Every reader of a file that somebody else wrote, on files that are nearly right: whatever they hold, it is understood or refused,
//! and neither panics, nor hangs, nor asks for memory that the file's size does not justify.
//!
//! Some hundred inputs each are tried here; `cargo xtask fuzz --minutes N` goes on, all readers side by side.

use e2e::{Family, ROWS, TinyModel, Work, tokenizer_json, write_parquet, write_torch};
use halfbyte_data::{ChatTemplate, DataConfig, Dataset, SpecialTokens, Tokenizer};
use halfbyte_files::{ShardedFiles, TensorFile, parse_header, parse_index, parse_pickle};
use halfbyte_lora::parse_adapter_config;
use halfbyte_models::{ModelConfig, spec};
use halfbyte_testkit::{
    Dice, mutate,
    readers::{Scratch, tries},
};
use serde_json::{Value, json};
use std::{fs, path::Path};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes or structure changed.
fn changed(dice: &mut Dice, good: &[u8], value: &Value) -> Vec<u8> {
    if dice.once_in(2) { mutate::bytes(dice, good) } else { mutate::document(dice, value) }
}

#[test]
fn headers_of_safetensors() {
    let (work, scratch) = (Work::new(), Scratch::new());
    let good = fs::read(work.model(&TinyModel::llama()).join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&good[8..8 + length]).unwrap();
    tries("safetensors", 300, |dice| {
        let text = mutate::document(dice, &header);
        let mut bytes = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        let data = &good[8 + length..];
        let path = if dice.once_in(6) {
            bytes.extend_from_slice(data);
            scratch.write("model.safetensors", &mutate::bytes(dice, &bytes))
        } else {
            // Tensors are not read, so that their bytes need not be written each time.
            scratch.write_beginning("model.safetensors", &bytes, bytes.len() + data.len())
        };
        drop(TensorFile::open(&path));
    });
}

/// A header in memory, and with a little luck the tensors that it says, one after the other.
#[test]
fn headers_without_a_file() {
    let work = Work::new();
    let good = fs::read(work.model(&TinyModel::llama()).join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let (header, data) = (&good[8..8 + length], (good.len() - 8 - length) as u64);
    let few: Vec<(String, Value)> =
        serde_json::from_slice::<serde_json::Map<_, _>>(header).unwrap().into_iter().take(4).collect();
    let value = Value::Object(few.into_iter().collect());
    let text = value.to_string().into_bytes();
    tries("headers of safetensors, in memory", 600, |dice| {
        let changed = changed(dice, &text, &value);
        let file = 8 + changed.len() as u64 + if dice.once_in(2) { data } else { dice.below(1 << 16) as u64 };
        let Ok(found) = parse_header(Path::new("model.safetensors"), &changed, file) else { return };
        let end = found.iter().fold(8 + changed.len() as u64, |end, (name, it)| {
            assert_eq!(it.begin, end, "{name} begins where the one before ends");
            end + it.bytes() as u64
        });
        assert_eq!(end, file, "all bytes belong to a tensor");
    });
}

#[test]
fn indices_without_a_folder() {
    let shard = |at: usize| format!("model-0000{at}-of-00002.safetensors");
    let value = json!({ "metadata": { "total_size": 123 }, "weight_map": { "a.weight": shard(1), "b": shard(2), "c": shard(2) } });
    let good = value.to_string().into_bytes();
    tries("indices of shards, in memory", 600, |dice| {
        let said = text(&changed(dice, &good, &value));
        let Ok((names, map)) = parse_index(Path::new("model.safetensors.index.json"), &said) else { return };
        assert!(!names.is_empty() && map.values().all(|it| names.contains(it)));
        let outside = |it: &String| it.starts_with('/') || it.split('/').any(|it| it == "..");
        assert!(!names.iter().any(outside), "{names:?} leave the folder");
    });
}

#[test]
fn pickles_without_a_file() {
    let work = Work::new();
    let path = work.path("pytorch_model.bin");
    write_torch(&path, &[("a.weight".into(), vec![2, 3], vec![0.5; 6]), ("b".into(), vec![4], vec![1.0; 4])]);
    let file = fs::read(path).unwrap();
    let begin = file.windows(2).position(|it| it == [0x80, 2]).expect("a program of protocol 2");
    let length = file[begin..].windows(2).position(|it| it == b".P").expect("it ends before the next part") + 1;
    let good = &file[begin..begin + length];
    assert_eq!(parse_pickle(good), Ok(2));
    tries("pickles, in memory", 600, |dice| drop(parse_pickle(&mutate::bytes(dice, good))));
}

#[test]
fn indices_of_shards() {
    let scratch = Scratch::new();
    TinyModel { shards: 2, ..TinyModel::llama() }.write(scratch.path());
    let name = "model.safetensors.index.json";
    let good: Value = serde_json::from_slice(&fs::read(scratch.path().join(name)).unwrap()).unwrap();
    tries("index of shards", 300, |dice| {
        scratch.write(name, &mutate::document(dice, &good));
        drop(ShardedFiles::open(scratch.path()));
    });
}

#[test]
fn configurations_of_models() {
    let all: Vec<Value> = Family::ALL.into_iter().map(|it| TinyModel::of(it).config()).collect();
    tries("config.json", 600, |dice| {
        let text = text(&mutate::document(dice, &all[dice.seed as usize % all.len()]));
        if let Ok(config) = ModelConfig::parse(Path::new("config.json"), &text) {
            drop(spec(&config));
        }
    });
}

#[test]
fn configurations_of_adapters() {
    let good = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "exclude_modules": null, "use_rslora": false, "use_dora": false,
        "modules_to_save": ["lm_head"], "rank_pattern": { "q_proj": 4 }, "alpha_pattern": { "v_proj": 2 },
        "layers_to_transform": [0, 1], "layers_pattern": "layers", "init_lora_weights": true, "trainable_token_indices": [1, 2],
        "target_parameters": ["mlp.experts.gate_up_proj"], "fan_in_fan_out": false, "base_model_name_or_path": "a/b",
    });
    tries("adapter_config.json", 600, |dice| {
        drop(parse_adapter_config(Path::new("adapter_config.json"), &text(&mutate::document(dice, &good))));
    });
}

#[test]
fn tokenizers() {
    let good: Value = serde_json::from_str(&tokenizer_json(0)).unwrap();
    let settings = json!({ "eos_token": "</s>", "unk_token": "?", "model_max_length": 64, "add_bos_token": true,
        "added_tokens_decoder": { "0": { "content": "</s>", "special": true } }, "chat_template": "{{ messages }}" });
    let scratch = Scratch::new();
    tries("tokenizer files", 200, |dice| {
        let first = if dice.once_in(3) { good.to_string().into_bytes() } else { mutate::document(dice, &good) };
        scratch.write("tokenizer.json", &first);
        scratch.write("tokenizer_config.json", &mutate::document(dice, &settings));
        if let Ok(tokenizer) = Tokenizer::load(scratch.path()) {
            drop(tokenizer.encode("the cat sat on the mat"));
            drop(tokenizer.decode(&[1, 2, 3, 70_000], false));
        }
    });
}

const TEMPLATES: [&str; 3] = [
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + loop.index %}{{ m.content | trim | upper }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}{{ ns.n }}",
    "{% macro turn(m) %}{{ m.role ~ ':' ~ m.content[:10] }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{{ range(loop.index * 3) | join(',') }}{% endfor %}{{ tools | tojson if tools else raise_exception('no') }}",
];

#[test]
fn templates_of_chats() {
    let tokenizer = Tokenizer::from_json(tokenizer_json(0).as_bytes(), SpecialTokens::default()).unwrap();
    let messages = [json!({ "role": "user", "content": "the cat" }), json!({ "role": "assistant", "content": "sat" })];
    tries("chat templates", 300, |dice| {
        let source = text(&mutate::bytes(dice, TEMPLATES[dice.seed as usize % 3].as_bytes()));
        if let Ok(template) = ChatTemplate::new(source, "a template", &tokenizer) {
            drop(template.render(&messages, None, dice.once_in(2)));
        }
    });
}

#[test]
fn files_of_rows() {
    let scratch = Scratch::new();
    let tokenizer = Tokenizer::from_json(tokenizer_json(0).as_bytes(), SpecialTokens::default()).unwrap();
    let parquet = scratch.path().join("rows.parquet");
    write_parquet(&parquet, &ROWS.map(Some));
    let lines: String =
        ROWS.iter().map(|it| json!({ "text": it, "n": [1, { "a": null }] }).to_string() + "\n").collect();
    let table = format!("id,text\n{}", ROWS.iter().map(|it| format!("1,\"{it}\"\n")).collect::<String>());
    let list = format!("[{}]", lines.trim_end().replace('\n', ","));
    let all = [
        ("a.parquet", fs::read(&parquet).unwrap()),
        ("a.jsonl", lines.into_bytes()),
        ("a.csv", table.into_bytes()),
        ("a.json", list.into_bytes()),
    ];
    let config = DataConfig { max_length: 16, ..DataConfig::default() };
    tries("parquet, JSON Lines, CSV and JSON", 400, |dice| {
        let (name, good) = &all[dice.seed as usize % all.len()];
        let path = scratch.write(name, &mutate::bytes(dice, good));
        drop(Dataset::load(&path, &tokenizer, &config));
    });
}

#[test]
fn pickles() {
    let scratch = Scratch::new();
    let path = scratch.path().join("pytorch_model.bin");
    write_torch(&path, &[("a.weight".into(), vec![2, 3], vec![0.5; 6]), ("b".into(), vec![4], vec![1.0; 4])]);
    let good = fs::read(&path).unwrap();
    tries("files of torch.save", 600, |dice| {
        drop(TensorFile::open(&scratch.write("pytorch_model.bin", &mutate::bytes(dice, &good))));
    });
}
