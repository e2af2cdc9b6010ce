//! `config.json` of published models, and of ones that are nearly so.

use halfbyte_models::{Architecture, Biases, BlockSpec, EmbeddingScale, ModelConfig, QkNorm};
use halfbyte_ops::{
    gelu::Gelu,
    rope::{Pairs, RopeScaling},
};
use serde_json::{Value, json};
use std::path::Path;

fn parse(config: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse(Path::new("config.json"), &config.to_string()).map_err(|e| e.to_string())
}

fn decoder(config: &ModelConfig) -> &BlockSpec {
    let Architecture::Decoder(spec) = &config.architecture else { panic!("{config:?}") };
    spec
}

fn with(config: &Value, more: &Value) -> Value {
    let mut config = config.clone();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// The sizes of Mistral 7B.
fn mistral(more: &Value) -> Value {
    let config = json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 32000, "tie_word_embeddings": false,
    });
    with(&config, more)
}

/// Those of Qwen2.5 7B and of Qwen3 8B.
fn qwen(more: &Value) -> Value {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
        "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 152064,
    });
    with(&config, more)
}

fn qwen3(more: &Value) -> Value {
    let config = qwen(&json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36,
        "num_key_value_heads": 8, "sliding_window": null, "max_window_layers": 36, "rope_scaling": null,
        "rope_theta": 1000000, "vocab_size": 151936,
    }));
    with(&config, more)
}

#[test]
fn published_configurations_are_understood() {
    let v1 = parse(&mistral(&json!({ "sliding_window": 4096, "rope_theta": 10000.0 }))).unwrap();
    assert_eq!((decoder(&v1).windows(), v1.head_dim), (vec![Some(4096); 32], 128));
    assert_eq!(decoder(&v1).biases, Biases { qkv: false, o: false, mlp: false });
    let v3 = parse(&mistral(&json!({ "sliding_window": null, "rope_theta": 1e6, "head_dim": 96 }))).unwrap();
    assert_eq!((decoder(&v3).windows(), v3.head_dim), (vec![None; 32], 96));
    assert_eq!(decoder(&v3).ropes[0].theta, 1e6);
    assert_eq!(decoder(&parse(&mistral(&json!({}))).unwrap()).windows()[31], Some(4096), "transformers' own default");
    let null = parse(&mistral(&json!({ "head_dim": null, "sliding_window": null }))).unwrap();
    assert_eq!(null.head_dim, 128);

    let qwen = parse(&qwen(&json!({}))).unwrap();
    assert_eq!(decoder(&qwen).biases, Biases { qkv: true, o: false, mlp: false });
    assert!(decoder(&qwen).qk_norm == QkNorm::None && decoder(&qwen).windows() == vec![None; 28]);
    let three = parse(&qwen3(&json!({}))).unwrap();
    assert!(decoder(&three).qk_norm == QkNorm::Heads && !decoder(&three).biases.qkv);
    assert_eq!((three.head_dim, decoder(&three).norm.eps), (128, 1e-6));
    assert!(decoder(&parse(&qwen3(&json!({ "attention_bias": true }))).unwrap()).biases.o);
}

/// The sizes of SmolLM3 3B, Granite 3.3 2B, OLMo 2 1B, Gemma 2 2B and Gemma 3 1B, with what their files say of the blocks.
#[test]
fn published_configurations_of_other_families_are_understood() {
    let smol = json!({
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008,
        "num_attention_heads": 16, "num_hidden_layers": 8, "num_key_value_heads": 4, "vocab_size": 128256,
        "rope_theta": 5000000.0, "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0], "no_rope_layer_interval": 4, "sliding_window": null,
        "use_sliding_window": false, "max_window_layers": 28, "layer_types": vec!["full_attention"; 8], "rope_scaling": null,
    });
    let config = parse(&smol).unwrap();
    let rotated: Vec<bool> = decoder(&config).layers.iter().map(|it| it.rope.is_some()).collect();
    assert_eq!(rotated, [true, true, true, false, true, true, true, false]);
    assert!(config.tie_word_embeddings && decoder(&config).windows() == vec![None; 8]);
    let granite = llama(&json!({
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_bias": false,
    }));
    let config = parse(&granite).unwrap();
    let spec = decoder(&config);
    assert_eq!((spec.scale, spec.residual, spec.logits.factor), (0.015625, 0.22, 0.125));
    assert!(spec.embedding == EmbeddingScale::Exact(12.0) && config.notes.is_empty());
    let olmo = json!({ "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "rope_theta": 500000 });
    let config = parse(&llama(&olmo)).unwrap();
    assert!(decoder(&config).qk_norm == QkNorm::Whole && decoder(&config).norm.rounds_last);
    let config =
        parse(&gemma("gemma2", &json!({ "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid" })))
            .unwrap();
    let spec = decoder(&config);
    assert_eq!((spec.cap, spec.logits.cap, spec.scale), (Some(50.0), Some(30.0), 0.0625));
    assert_eq!((spec.windows()[..2].to_vec(), spec.norm.offset), (vec![Some(4096), None], 1.0));
    let config = parse(&gemma("gemma3_text", &json!({ "sliding_window": 512, "rope_theta": 1000000.0 }))).unwrap();
    let spec = decoder(&config);
    assert_eq!((spec.cap, spec.logits.cap, spec.ropes[0].theta, spec.ropes[1].theta), (None, None, 1e6, 1e4));
    let of = |it: usize| (spec.layers[it].window, spec.layers[it].rope);
    assert_eq!([of(4), of(5), of(6)], [(Some(512), Some(1)), (None, Some(0)), (Some(512), Some(1))]);
}

/// The sizes of Phi-4 mini, and of Phi-3 mini with a context of 4k.
#[test]
fn published_configurations_of_phi_are_understood() {
    let factors = |value: f64| vec![value; 48];
    let phi4 = json!({
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
        "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 200064, "hidden_act": "silu",
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
        "rope_scaling": { "type": "longrope", "short_factor": factors(1.0), "long_factor": factors(1.5) },
    });
    let config = parse(&phi4).unwrap();
    let spec = decoder(&config);
    assert!(spec.fused && spec.ropes[0].channels == 96 && config.rope_switch() == Some(4096));
    let RopeScaling::LongRope { attention_factor, .. } = spec.ropes[0].scaling else { panic!("{spec:?}") };
    assert!((attention_factor - 1.190_238).abs() < 1e-6, "{attention_factor}");
    let phi3 = with(
        &phi4,
        &json!({
            "sliding_window": 2047, "rope_scaling": null, "partial_rotary_factor": null, "num_attention_heads": 32,
            "num_key_value_heads": 32, "max_position_embeddings": 4096,
        }),
    );
    let config = parse(&phi3).unwrap();
    assert_eq!((decoder(&config).windows()[31], decoder(&config).ropes[0].channels), (Some(2047), 96));
    for (wrong, part) in [
        (json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }), "rope type linear"),
        (json!({ "rope_scaling": { "type": "su", "short_factor": [1.0] } }), "long_factor"),
        (json!({ "partial_rotary_factor": 1.5 }), "partial_rotary_factor is 1.5"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is gelu"),
    ] {
        let error = parse(&with(&phi4, &wrong)).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

fn gemma(model_type: &str, more: &Value) -> Value {
    let architecture = if model_type == "gemma2" { "Gemma2ForCausalLM" } else { "Gemma3ForCausalLM" };
    let config = json!({
        "architectures": [architecture], "model_type": model_type, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
        "intermediate_size": 9216, "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "head_dim": 256,
        "query_pre_attn_scalar": 256, "vocab_size": 256000,
    });
    with(&config, more)
}

#[test]
fn windows_are_on_the_layers_that_the_file_says() {
    let window = json!({ "use_sliding_window": true, "sliding_window": 100, "max_window_layers": 20 });
    let windows = decoder(&parse(&qwen(&window)).unwrap()).windows();
    assert_eq!((windows[19], windows[20], windows[27]), (None, Some(100), Some(100)));
    let mut kinds = vec!["full_attention"; 28];
    kinds[3] = "sliding_attention";
    let listed = qwen(&with(&window, &json!({ "layer_types": kinds })));
    let windows = decoder(&parse(&listed).unwrap()).windows();
    assert_eq!((windows[3], windows[27]), (Some(100), None), "the list wins");
    let five = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 5e5 }, "rope_theta": null });
    assert_eq!(decoder(&parse(&qwen(&five)).unwrap()).ropes[0].theta, 5e5);
}

fn llama(more: &Value) -> Value {
    with(&mistral(&json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama" })), more)
}

#[test]
fn old_and_mixed_spellings_of_the_rotation_mean_what_they_mean_in_transformers() {
    let rope = |more: Value| {
        let config = parse(&llama(&more)).unwrap();
        (decoder(&config).ropes[0].scaling.clone(), config.notes)
    };
    let plain = json!({ "rope_type": "default", "rope_theta": 10000.0 });
    let linear = json!({ "type": "linear", "factor": 2.0 });
    let both = rope(json!({ "rope_parameters": plain, "rope_scaling": linear }));
    assert_eq!(both.0, RopeScaling::Linear { factor: 2.0 });
    assert!(both.1[0].contains("rope_scaling is used"), "{:?}", both.1);
    for empty in [json!({}), Value::Null] {
        assert_eq!(
            rope(json!({ "rope_parameters": linear, "rope_scaling": empty })).0,
            RopeScaling::Linear { factor: 2.0 }
        );
    }
    let (scaling, notes) = rope(json!({ "rope_scaling": { "factor": 4.0 } }));
    assert!(scaling == RopeScaling::None && notes[0].contains("not named") && notes[0].contains("factor"), "{notes:?}");
    let three = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 32 });
    let outside = rope(json!({ "rope_scaling": three, "original_max_position_embeddings": 16 })).0;
    assert!(matches!(outside, RopeScaling::Llama3 { original_max_position: 16, .. }), "{outside:?}");
    let inside = rope(json!({ "rope_scaling": three }));
    assert!(matches!(inside.0, RopeScaling::Llama3 { original_max_position: 32, .. }) && inside.1.is_empty());
    let (scaling, notes) = rope(json!({ "partial_rotary_factor": 0.5 }));
    assert!(scaling == RopeScaling::None && notes[0].contains("not applied"), "{notes:?}");
    for (wrong, part) in [
        (json!({ "rope_scaling": "linear" }), "expected an object"),
        (json!({ "rope_scaling": linear, "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
    ] {
        let error = parse(&llama(&wrong)).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn architectures_are_known_by_other_spellings_of_their_names() {
    for name in ["LLaMAForCausalLM", "LlamaModel", "llama"] {
        let config = parse(&llama(&json!({ "architectures": [name] }))).unwrap();
        assert!(matches!(config.architecture, Architecture::Decoder(_)), "{name}");
    }
    let neo = json!({ "architectures": ["GPTNeoModel"], "vocab_size": 32, "num_layers": 2 });
    assert!(matches!(parse(&neo).unwrap().architecture, Architecture::Gpt(_)));
    assert!(parse(&llama(&json!({ "hidden_act": "swish" }))).is_ok());
    for other in ["LlamaForSequenceClassification", "LlamaForCausalLMs"] {
        assert!(parse(&llama(&json!({ "architectures": [other] }))).unwrap_err().contains("not supported"), "{other}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let kinds = |kind: &str| json!({ "use_sliding_window": true, "sliding_window": 9, "layer_types": vec![kind; 28] });
    let refused = [
        (qwen(&kinds("chunked_attention")), "chunked_attention"),
        (qwen(&with(&kinds("sliding_attention"), &json!({ "use_sliding_window": false }))), "no sliding_window"),
        (qwen(&json!({ "layer_types": ["full_attention"] })), "1 layers"),
        (qwen(&json!({ "hidden_act": "gelu" })), "hidden_act is gelu"),
        (qwen(&json!({ "rope_scaling": { "type": "mrope" } })), "mrope"),
        (mistral(&json!({ "sliding_window": 0 })), "sliding_window is 0"),
        (mistral(&json!({ "sliding_window": 9, "layer_types": vec!["full_attention"; 32] })), "contradict"),
        (llama(&json!({ "model_type": "granite", "residual_multiplier": -1.0 })), "residual_multiplier is -1"),
        (llama(&json!({ "model_type": "smollm3", "no_rope_layers": [1, 0] })), "2 layers"),
        (llama(&json!({ "model_type": "smollm3", "no_rope_layers": vec![2; 32] })), "no_rope_layers holds 2"),
        (gemma("gemma2", &json!({ "hidden_activation": "silu" })), "hidden_activation is silu"),
        (gemma("gemma2", &json!({ "sliding_window": null })), "sliding_window is null"),
        (gemma("gemma2", &json!({ "attn_logit_softcapping": 0 })), "attn_logit_softcapping is 0"),
        (gemma("gemma3_text", &json!({ "use_bidirectional_attention": true })), "use_bidirectional_attention"),
        (gemma("gemma3_text", &json!({ "rope_parameters": { "full_attention": 3 } })), "full_attention is 3"),
        (json!({ "architectures": ["OlmoeForCausalLM"] }), "OlmoeForCausalLM is not supported"),
    ];
    for (config, part) in refused {
        let error = parse(&config).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_model_type_decides_as_in_transformers() {
    let both = parse(&mistral(&json!({ "architectures": ["LlamaForCausalLM"], "sliding_window": 4 }))).unwrap();
    assert_eq!(both.architecture_name(), "MistralForCausalLM");
    assert_eq!(decoder(&both).windows()[0], Some(4));
    assert!(both.notes.iter().any(|it| it.contains("model_type mistral counts")), "{:?}", both.notes);
    for fine in [json!({}), json!({ "architectures": ["MISTRALForCausalLM"] }), json!({ "model_type": null })] {
        assert_eq!(parse(&mistral(&fine)).unwrap().notes, [] as [&str; 0]);
    }
    let unknown = parse(&mistral(&json!({ "model_type": "mistral_of_mine" }))).unwrap();
    assert_eq!(unknown.architecture_name(), "MistralForCausalLM");
}

#[test]
fn heads_of_keys_that_are_null_are_as_many_as_those_of_queries() {
    let mut config = mistral(&json!({ "num_key_value_heads": null }));
    assert_eq!(parse(&config).unwrap().num_key_value_heads, 32);
    config.as_object_mut().unwrap().remove("num_key_value_heads");
    assert_eq!(parse(&config).unwrap().num_key_value_heads, 8);
}

/// Pythia 1.4B, GPT-NeoX 20B in part, and GPT-2.
#[test]
fn published_configurations_of_gpts_are_understood() {
    let gpt = |config: &Value| {
        let config = parse(config).unwrap();
        let Architecture::Gpt(spec) = &config.architecture else { panic!("{config:?}") };
        (spec.clone(), config)
    };
    let pythia = json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 2048,
        "intermediate_size": 8192, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_attention_heads": 16,
        "num_hidden_layers": 24, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
        "use_parallel_residual": true, "vocab_size": 50304, "bos_token_id": 0, "eos_token_id": 0,
    });
    let (spec, config) = gpt(&pythia);
    assert!(spec.parallel && spec.gelu == Gelu::Exact && spec.biases == [true, true, false] && config.notes.is_empty());
    assert_eq!((spec.rope.unwrap().channels, config.architecture_name()), (32, "GPTNeoXForCausalLM"));
    assert_eq!(gpt(&with(&pythia, &json!({ "hidden_act": "gelu_fast" }))).0.gelu, Gelu::Tanh);
    let gpt2 = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1,
        "embd_pdrop": 0.1, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "vocab_size": 50257, "eos_token_id": 50256,
    });
    let (spec, config) = gpt(&gpt2);
    assert!(spec.rope.is_none() && spec.scale == 0.125 && config.tie_word_embeddings && config.notes.len() == 3);
    assert_eq!((config.hidden_size, config.intermediate_size, config.max_position_embeddings), (768, 3072, 1024));
    // As EleutherAI's gpt-j-6B has it.
    let gptj = json!({
        "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "activation_function": "gelu_new", "attn_pdrop": 0.0,
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "n_embd": 4096, "n_head": 16, "n_inner": null, "n_layer": 28,
        "n_positions": 2048, "rotary": true, "rotary_dim": 64, "scale_attn_weights": true, "tie_word_embeddings": false,
        "vocab_size": 50400, "eos_token_id": 50256, "gradient_checkpointing": false, "layer_norm_epsilon": 1e-5,
    });
    let (spec, config) = gpt(&gptj);
    let rope = spec.rope.unwrap();
    assert!(
        spec.parallel && spec.biases == [false, false, true] && spec.scale == 1.0 / 16.0 && config.notes.is_empty()
    );
    assert_eq!((rope.channels, rope.pairs, config.intermediate_size), (64, Pairs::Neighbours, 16_384));
    for (wrong, part) in [
        (with(&gptj, &json!({ "rotary_dim": null })), "rotary_dim"),
        (with(&gptj, &json!({ "rotary_dim": 512 })), "rotary_dim is 512"),
        (with(&gptj, &json!({ "tie_word_embeddings": true })), "tie_word_embeddings is true"),
        (with(&pythia, &json!({ "hidden_act": "silu" })), "hidden_act is silu"),
        (with(&pythia, &json!({ "rotary_pct": 0.0 })), "share of heads"),
        (with(&gpt2, &json!({ "scale_attn_by_inverse_layer_idx": true })), "scale_attn_by_inverse_layer_idx"),
        (with(&gpt2, &json!({ "activation_function": "relu" })), "activation_function is relu"),
    ] {
        let error = parse(&wrong).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_usual_names_of_sizes_win_over_gpt_neos_own() {
    let neo = |more: Value| {
        let config = json!({ "model_type": "gpt_neo", "hidden_size": 32, "num_layers": 2, "num_heads": 2 });
        let it = parse(&with(&config, &more)).unwrap();
        (it.num_hidden_layers, it.num_attention_heads, it.head_dim)
    };
    assert_eq!(neo(json!({})), (2, 2, 16));
    assert_eq!(neo(json!({ "num_attention_heads": 4, "num_hidden_layers": null })), (2, 4, 8));
    assert_eq!(neo(json!({ "num_heads": null, "num_attention_heads": 4, "num_hidden_layers": 4 })), (4, 4, 8));
}

/// A configuration whose `key` is of this size.
fn sized(architecture: &str, key: &str, size: u64) -> String {
    let mut config = serde_json::json!({
        "architectures": [architecture], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
    });
    if key == "n_layer" || key == "num_layers" {
        // The usual name counts where both are given.
        config.as_object_mut().unwrap().remove("num_hidden_layers");
    }
    config[key] = size.into();
    config.to_string()
}

#[test]
fn layers_that_no_machine_could_list_are_refused() {
    for (architecture, key) in [
        ("GPTNeoXForCausalLM", "num_hidden_layers"),
        ("GPT2LMHeadModel", "n_layer"),
        ("GPTNeoForCausalLM", "num_layers"),
        ("LlamaForCausalLM", "num_hidden_layers"),
    ] {
        for layers in [u64::MAX, 1 << 40, 1 << 20] {
            let text = sized(architecture, key, layers);
            let error = halfbyte_models::ModelConfig::parse(std::path::Path::new("config.json"), &text).unwrap_err();
            assert!(error.to_string().contains(key), "{architecture}: {error}");
        }
    }
}

#[test]
fn sizes_that_no_model_has_are_refused_by_name() {
    for architecture in ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM"] {
        for key in ["hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"] {
            // The second is a multiple of the heads, and four times as much is no number of the machine.
            for size in [u64::MAX, 1 << 62, 1 << 31] {
                let text = sized(architecture, key, size);
                let found = halfbyte_models::ModelConfig::parse(std::path::Path::new("config.json"), &text);
                let error = found.unwrap_err().to_string();
                assert!(error.contains(key) && error.contains("more than any model has"), "{architecture}: {error}");
            }
        }
    }
}

#[test]
fn experts_that_no_machine_could_list_are_refused() {
    for (architecture, key) in [("MixtralForCausalLM", "num_local_experts"), ("Qwen3MoeForCausalLM", "num_experts")] {
        let text = sized(architecture, key, u64::MAX);
        let error = halfbyte_models::ModelConfig::parse(std::path::Path::new("config.json"), &text).unwrap_err();
        assert!(error.to_string().contains(key), "{architecture}: {error}");
    }
    for size in [u64::MAX, 1 << 32] {
        let text = sized("Qwen3MoeForCausalLM", "moe_intermediate_size", size);
        let error = halfbyte_models::ModelConfig::parse(std::path::Path::new("config.json"), &text).unwrap_err();
        assert!(error.to_string().contains("more than any model has"), "{error}");
    }
}
