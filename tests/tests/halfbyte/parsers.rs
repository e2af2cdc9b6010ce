//! Every reader of a file that somebody else wrote, on files that are nearly right: whatever they hold, it is understood or refused,
//! and neither panics, nor hangs, nor asks for memory that the file's size does not justify.
//!
//! Some hundred inputs each are tried here; `cargo xtask fuzz --minutes N` goes on, all readers side by side.

mod rows;

use e2e::{Family, TinyModel, Work, tokenizer_json, write_torch};
use halfbyte_data::{ChatTemplate, SpecialTokens, TOKENIZER_FILES, Tokenizer};
use halfbyte_files::{ShardedFiles, TensorFile, parse_header, parse_index, parse_pickle};
use halfbyte_lora::parse_adapter_config;
use halfbyte_models::{ModelConfig, spec};
use halfbyte_testkit::{
    Dice, grown, mutate,
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

/// An object without one of its keys, now and then.
fn without(dice: &mut Dice, mut value: Value, key: &str) -> Value {
    if dice.once_in(2) {
        value.as_object_mut().map(|it| it.remove(key));
    }
    value
}

/// The text of a header whose tensors fill their places, but for one that may lie elsewhere, or stand twice; and the bytes behind it.
fn header(dice: &mut Dice) -> (Vec<u8>, u64) {
    let dtypes = [
        ("F32", 4),
        ("F16", 2),
        ("BF16", 2),
        ("U8", 1),
        ("I64", 8),
        ("F8_E4M3", 1),
        ("BOOL", 1),
        ("F64", 8),
        ("Q4", 1),
    ];
    let (mut entries, mut end) = (Vec::new(), 0u64);
    for at in 0..dice.below(5) {
        let (dtype, size) = *dice.one_of(&dtypes);
        let shape: Vec<u64> = (0..dice.below(4)).map(|_| dice.below(4) as u64).collect();
        let bytes = shape.iter().product::<u64>() * size;
        let begin =
            if dice.once_in(10) { end.saturating_sub(dice.below(9) as u64) } else { end + u64::from(dice.once_in(20)) };
        let name = if dice.once_in(20) { 0 } else { at };
        entries.push(format!(
            "\"t{name}\": {}",
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, begin + bytes] })
        ));
        end = begin + bytes;
    }
    if dice.once_in(3) {
        entries.push("\"__metadata__\": {\"format\": \"pt\"}".into());
    }
    if dice.once_in(2) {
        entries.reverse();
    }
    (format!("{{{}}}", entries.join(", ")).into_bytes(), end)
}

#[test]
fn headers_of_safetensors() {
    let (work, scratch) = (Work::new(), Scratch::new());
    let good = fs::read(work.model(&TinyModel::llama()).join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&good[8..8 + length]).unwrap();
    tries("safetensors", 300, |dice| {
        // What people have in the place of weights.
        let odd: &[&[u8]] = &[
            b"version https://git-lfs.github.com/spec",
            b"<!DOCTYPE html>",
            b"GGUF\x03\0\0\0\0\0",
            b"PK\x03\x04",
            b"short",
        ];
        if dice.once_in(8) {
            let name = *dice.one_of(&["odd.safetensors", "odd.bin"]);
            let bytes = if dice.once_in(3) { mutate::bytes(dice, odd[0]) } else { dice.one_of(odd).to_vec() };
            return drop(TensorFile::open(&scratch.write(name, &bytes)));
        }
        let text = if dice.once_in(3) { self::header(dice).0 } else { mutate::document(dice, &header) };
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
        let (changed, end) = if dice.once_in(2) { self::header(dice) } else { (changed(dice, &text, &value), data) };
        let file = 8 + changed.len() as u64 + if dice.once_in(4) { dice.below(1 << 16) as u64 } else { end };
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
    tries("pickles, in memory", 600, |dice| {
        let whole = if dice.once_in(2) { good.to_vec() } else { grown::pickle(dice) };
        drop(parse_pickle(&if dice.once_in(2) { mutate::bytes(dice, &whole) } else { whole }));
    });
}

#[test]
fn indices_of_shards() {
    let scratch = Scratch::new();
    TinyModel { shards: 2, ..TinyModel::llama() }.write(scratch.path());
    let name = "model.safetensors.index.json";
    let good: Value = serde_json::from_slice(&fs::read(scratch.path().join(name)).unwrap()).unwrap();
    // A tensor in both files, and which of the two counts.
    let shards: Vec<String> =
        good["weight_map"].as_object().unwrap().values().map(|it| it.as_str().unwrap().to_owned()).collect();
    let (first, last) = (shards.iter().min().unwrap().clone(), shards.iter().max().unwrap().clone());
    let whole: Vec<Vec<u8>> = [&first, &last].map(|it| fs::read(scratch.path().join(it)).unwrap()).into();
    let listed: Vec<String> = good["weight_map"].as_object().unwrap().keys().cloned().collect();
    tries("index of shards", 300, |dice| {
        let mut index = good.clone();
        for name in &listed {
            if dice.once_in(listed.len()) {
                index["weight_map"][name] = json!(if dice.once_in(2) { &first } else { &last });
            }
            if dice.once_in(3 * listed.len()) {
                index["weight_map"].as_object_mut().map(|it| it.remove(name));
            }
        }
        let index = if dice.once_in(2) { mutate::document(dice, &index) } else { index.to_string().into_bytes() };
        scratch.write(name, &index);
        // The first file again in the place of the second, which then holds what it holds.
        scratch.write(&last, &whole[usize::from(!dice.once_in(3))]);
        if dice.once_in(10) {
            let _ = fs::remove_file(scratch.path().join(dice.one_of(&[name, &first])));
        }
        if !scratch.path().join(&first).exists() && dice.once_in(2) {
            scratch.write(&first, &whole[0]);
        }
        drop(ShardedFiles::open(scratch.path()));
    });
}

#[test]
fn configurations_of_models() {
    let all: Vec<Value> = Family::ALL.into_iter().map(|it| TinyModel::of(it).config()).collect();
    let scaled = |kind: &str| {
        json!({ "rope_type": kind, "type": kind, "factor": 4.0, "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5,
        "attention_factor": 1.1, "truncate": false, "short_factor": [1.0, 2.0, 1.0, 2.0], "long_factor": [2.0, 3.0, 2.0, 3.0],
        "rope_theta": 500.0, "partial_rotary_factor": 0.5 })
    };
    let kinds = ["linear", "dynamic", "yarn", "llama3", "longrope", "su", "default", "made_up"].map(scaled);
    let by_window = json!({ "full_attention": kinds[0], "sliding_attention": kinds[6] });
    let ropes: Vec<Value> =
        kinds.iter().cloned().chain([by_window, json!({ "full_attention": 1 }), json!({ "factor": 2.0 })]).collect();
    let layers = |a: &str, b: &str| json!([[a, b], [a], [b, b], [a, a, a], [1, 2]]);
    let choices = json!({
        "rope_scaling": ropes, "rope_parameters": ropes, "partial_rotary_factor": [0.5, 1.0, "a"], "rotary_pct": [0.25, 2],
        "rope_theta": [10000.0, 5, "b"], "layer_types": layers("full_attention", "sliding_attention").as_array().unwrap(),
        "no_rope_layers": [[1, 0], [0], [1, 1, 1], [2, 1], "x"], "no_rope_layer_interval": [0, 1, 2], "use_sliding_window": [true, false],
        "sliding_window": [4, null, 0], "max_window_layers": [0, 1, 9], "attention_layers": [["global", "local"], ["global"], [1, 2]],
        "attention_types": [[[["global", "local"], 1]], [[["global"], 9]]], "scale_attn_weights": [false], "attention_dropout": [0.1],
        "quantization_config": [{ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4" },
            { "load_in_8bit": true, "llm_int8_threshold": 5.0 }, { "quant_method": "mxfp4" }, { "quant_method": "gptq" }, {}],
        "architectures": [["LlamaForCausalLM"], ["Made"], [], ["MistralForCausalLM", "a"]], "model_type": ["llama", "gpt_oss", "made"],
        "hidden_act": ["gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "relu"], "activation_function": ["gelu", "gelu_new", "relu"],
        "router_aux_loss_coef": [0.0, 0.1, -1.0, "a"], "output_router_logits": [true], "decoder_sparse_step": [0, 1, 2],
        "mlp_only_layers": [[0], [7], "a"], "num_experts": [0, 1, 4000, 40_000_000], "num_local_experts": [2, 9_000_000_000u64],
        "head_dim": [8, 7, 0], "attention_bias": [true], "mlp_bias": [true], "tie_word_embeddings": [true, false], "made_up": [1],
        "torch_dtype": ["float16", "int8"], "scale_attn_by_inverse_layer_idx": [true], "n_inner": [16, null], "rotary_dim": [2, 4, null],
    });
    tries("config.json", 600, |dice| {
        let with_more = mutate::with(dice, &all[dice.seed as usize % all.len()], &choices);
        let whole =
            if dice.once_in(2) { with_more.to_string().into_bytes() } else { mutate::document(dice, &with_more) };
        let text = text(&whole);
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
    let choices = json!({
        "peft_type": ["lora", "IA3", "PROMPT_TUNING", "ADALORA", null], "fine_tune_type": ["lora"], "lora_parameters": [{}],
        "init_lora_weights": ["mica", "MiCA", "loftq", "pissa", "olora", "eva", "gaussian", "pissa_niter_4", "corda", false],
        "trainable_token_indices": [{ "embed_tokens": [1, 2] }, { "a": ["b"] }, [], [-1]], "target_modules": ["all-linear", "ALL-LINEAR", ".*q", null],
        "exclude_modules": [".*", "", ["a"], []], "layers_to_transform": [3, null], "layers_pattern": ["", ["a", "b"]], "r": [0, 1, 1u64 << 40],
        "use_dora": [true], "use_rslora": [true], "target_parameters": [null, []], "modules_to_save": [null], "made_up": [1], "bias": ["all", "lora_only"],
        "ensure_weight_tying": [true], "rank_pattern": [{ "a": "b" }, {}], "lora_bias": [true], "revision": ["main"], "alora_invocation_tokens": [[1]],
    });
    tries("adapter_config.json", 600, |dice| {
        let with_more = mutate::with(dice, &good, &choices);
        let with_more = if dice.once_in(4) { without(dice, with_more, "peft_type") } else { with_more };
        let whole =
            if dice.once_in(2) { with_more.to_string().into_bytes() } else { mutate::document(dice, &with_more) };
        drop(parse_adapter_config(Path::new("adapter_config.json"), &text(&whole)));
    });
}

#[test]
fn tokenizers() {
    let good: Value = serde_json::from_str(&tokenizer_json(0)).unwrap();
    let token = json!({ "content": "</s>", "lstrip": false, "rstrip": false, "normalized": false, "single_word": false, "special": true });
    let settings = json!({ "eos_token": "</s>", "unk_token": "?", "pad_token": token, "bos_token": null, "mask_token": "<mask>",
        "model_max_length": 64, "add_bos_token": true, "add_eos_token": false, "add_prefix_space": true, "legacy": false,
        "added_tokens_decoder": { "0": token, "40": { "content": "<new>", "special": false } }, "chat_template": "{{ messages }}",
        "additional_special_tokens": ["<extra>", token], "extra_special_tokens": { "image_token": "<image>" }, "image_token": "<image>",
        "tokenizer_class": "LlamaTokenizer", "truncation_side": "left", "fix_mistral_regex": true, "split_special_tokens": false });
    let generation = json!({ "eos_token_id": [0, 1], "bos_token_id": 2, "pad_token_id": -1, "do_sample": true, "temperature": 0.7,
        "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "num_beams": 4, "stop_strings": ["a"], "min_length": 0 });
    let words = [
        "<unk>", "<s>", "</s>", "<0x0A>", "<0xE2>", "<0x82>", "a", "b", "c", "t", "h", "e", "th", "the", "▁", "▁the",
        "▁c", "at", "Ġ", "Ġa", "ab",
    ];
    let vocab: Value = words
        .iter()
        .enumerate()
        .map(|(id, it)| ((*it).to_owned(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let merges = "#version: 0.2\na b\nt h\nth e\nĠ a\na t\n";
    let small = [
        ("tokenizer_config.json", settings),
        (
            "special_tokens_map.json",
            json!({ "eos_token": token, "additional_special_tokens": ["<more>"], "cls_token": "<cls>" }),
        ),
        ("added_tokens.json", json!({ "<new>": 40, "</s>": 0, "<other>": 19 })),
        ("generation_config.json", generation),
        ("config.json", json!({ "model_type": "llama", "eos_token_id": 1, "bos_token_id": null })),
    ];
    let kinds = ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2TokenizerFast", "GPT2TokenizerFast", "BertTokenizer"];
    let scratch = Scratch::new();
    tries("tokenizer files", 200, |dice| {
        // What the attempt before wrote and this one does not is in nobody's way.
        for name in TOKENIZER_FILES.iter().chain(&["config.json"]) {
            let _ = fs::remove_file(scratch.path().join(name));
        }
        let wild = |dice: &mut Dice, it: &Value| {
            if dice.once_in(3) { mutate::document(dice, it) } else { it.to_string().into_bytes() }
        };
        match dice.below(4) {
            0 | 1 => drop(scratch.write("tokenizer.json", &wild(dice, &good))),
            2 => {
                let text = if dice.once_in(3) { mutate::bytes(dice, merges.as_bytes()) } else { merges.into() };
                scratch.write("merges.txt", &text);
                scratch.write("vocab.json", &wild(dice, &vocab));
            }
            _ => {
                let model = grown::pieces(dice, &words);
                scratch.write("tokenizer.model", &if dice.once_in(2) { mutate::bytes(dice, &model) } else { model });
            }
        }
        for (name, it) in &small {
            if dice.once_in(2) {
                let mut it = it.clone();
                if *name == "tokenizer_config.json" {
                    it["tokenizer_class"] = json!(dice.one_of(&kinds));
                    for key in ["add_prefix_space", "legacy", "add_bos_token", "add_eos_token"] {
                        it[key] = json!(dice.once_in(2));
                    }
                    for key in ["added_tokens_decoder", "add_bos_token", "pad_token"] {
                        if dice.once_in(2) {
                            it[key] = Value::Null;
                        }
                    }
                }
                scratch.write(name, &wild(dice, &it));
            }
        }
        if let Ok(tokenizer) = Tokenizer::load(scratch.path()) {
            drop(tokenizer.encode("the cat sat on the mat</s><new>"));
            drop(tokenizer.decode(&[1, 2, 3, 70_000], dice.once_in(2)));
            let mut stream = tokenizer.stream(dice.once_in(2));
            for _ in 0..dice.below(100) {
                drop(stream.push(dice.below(40) as u32));
            }
            drop(stream.finish());
            drop(ChatTemplate::load(scratch.path(), &tokenizer));
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
    let scratch = Scratch::new();
    let messages = [json!({ "role": "user", "content": "the cat" }), json!({ "role": "assistant", "content": "sat" })];
    let parts = json!([{ "type": "text", "text": "it's" }, { "type": "image" }]);
    let more = [
        json!({ "role": "system", "content": parts }),
        json!({ "role": "assistant", "content": null, "reasoning": "so",
            "tool_calls": [{ "function": { "name": "f", "arguments": { "x": 1.5, "y": [true, null, "\u{1}\"'"] } } }] }),
        json!({ "role": "tool", "content": "{}", "n": 1e300 }),
        json!("no object"),
    ];
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    tries("chat templates", 300, |dice| {
        let whole = if dice.once_in(3) { TEMPLATES[dice.seed as usize % 3].to_owned() } else { grown::template(dice) };
        let source = if dice.once_in(2) { text(&mutate::bytes(dice, whole.as_bytes())) } else { whole };
        let template = match dice.below(8) {
            0 => {
                let named = json!([{ "name": "default", "template": source }, { "name": "tool_use", "template": "{{ tools }}" }]);
                scratch.write("chat_template.json", &mutate::document(dice, &json!({ "chat_template": named })));
                ChatTemplate::load(scratch.path(), &tokenizer)
            }
            _ => ChatTemplate::new(source, "a template", &tokenizer).map(Some),
        };
        if let Ok(Some(template)) = template {
            let said: Vec<Value> = messages.iter().chain(&more[..dice.below(5)]).cloned().collect();
            drop(template.render(&said, Some(&tools).filter(|_| dice.once_in(2)), dice.once_in(2)));
            drop(template.end_ids(&tokenizer));
        }
    });
}

#[test]
fn pickles() {
    let scratch = Scratch::new();
    let path = scratch.path().join("pytorch_model.bin");
    write_torch(&path, &[("a.weight".into(), vec![2, 3], vec![0.5; 6]), ("b".into(), vec![4], vec![1.0; 4])]);
    let good = fs::read(&path).unwrap();
    tries("files of torch.save", 600, |dice| {
        let whole = if dice.once_in(4) { good.clone() } else { archive(dice) };
        let bytes = if dice.once_in(3) { mutate::bytes(dice, &whole) } else { whole };
        drop(TensorFile::open(&scratch.write("pytorch_model.bin", &bytes)));
    });
}

/// The parts that torch.save writes, mostly.
fn archive(dice: &mut Dice) -> Vec<u8> {
    let mut parts = vec![("a/data.pkl".to_owned(), grown::pickle(dice))];
    let storages = dice.below(4);
    parts.extend((0..storages).map(|it| (format!("a/data/{it}"), vec![0; 24 + 24 * dice.below(2)])));
    for (name, bytes) in
        [("a/byteorder", &b"little"[..]), ("a/byteorder", b"big"), ("a/version", b"3"), ("b/data.pkl", b".")]
    {
        if dice.once_in(if bytes == b"little" { 2 } else { 20 }) {
            parts.push((name.to_owned(), bytes.to_vec()));
        }
    }
    if dice.once_in(20) {
        let doubled = dice.one_of(&parts).clone();
        parts.push(doubled);
    }
    grown::zip(dice, &parts)
}
