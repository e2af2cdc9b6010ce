//! `config.json` of published mixtures of experts, and of ones that are nearly so.

use halfbyte_models::{Architecture, ExpertSpec, ModelConfig};
use halfbyte_ops::{Gate, experts::Choice};
use serde_json::{Value, json};
use std::path::Path;

fn parse(config: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse(Path::new("config.json"), &config.to_string()).map_err(|e| e.to_string())
}

/// The experts, and which blocks have them.
fn experts(config: &ModelConfig) -> (Option<ExpertSpec>, Vec<bool>) {
    let Architecture::Decoder(spec) = &config.architecture else { panic!("{config:?}") };
    (spec.experts, spec.layers.iter().map(|it| it.sparse).collect())
}

fn with(config: &Value, more: &Value) -> Value {
    let mut config = config.clone();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// Mixtral 8x7B.
fn mixtral(more: &Value) -> Value {
    let config = json!({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": false,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": true,
        "vocab_size": 32000,
    });
    with(&config, more)
}

/// Qwen3 30B-A3B.
fn qwen(more: &Value) -> Value {
    let config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
        "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
        "vocab_size": 151936,
    });
    with(&config, more)
}

#[test]
fn published_configurations_are_understood() {
    let config = parse(&mixtral(&json!({}))).unwrap();
    assert!(config.notes.is_empty() && config.windows() == [None; 32], "{:?}", config.notes);
    let (spec, sparse) = experts(&config);
    let spec = spec.unwrap();
    assert_eq!((spec.count, spec.inner, spec.balance, sparse), (8, 14336, None, vec![true; 32]));
    assert_eq!(spec.choice, Choice { each: 2, normalised: true });
    let config = parse(&qwen(&json!({}))).unwrap();
    assert!(config.notes.is_empty() && config.windows() == [None; 48], "{:?}", config.notes);
    let (spec, sparse) = experts(&config);
    let spec = spec.unwrap();
    assert_eq!((spec.count, spec.inner, spec.balance, sparse), (128, 768, None, vec![true; 48]));
    assert_eq!(spec.choice, Choice { each: 8, normalised: true });
}

#[test]
fn variants_mean_what_they_mean_in_transformers() {
    let of = |more: Value| experts(&parse(&qwen(&with(&json!({ "num_hidden_layers": 4 }), &more))).unwrap());
    assert_eq!(of(json!({ "decoder_sparse_step": 2 })).1, [false, true, false, true]);
    assert_eq!(of(json!({ "mlp_only_layers": [0, 3, 9] })).1, [false, true, true, false]);
    assert_eq!(of(json!({ "num_experts": 0 })), (None, vec![false; 4]));
    // The name by which transformers 5 writes it.
    assert_eq!(of(json!({ "num_local_experts": 16 })).0.unwrap().count, 16);
    assert!(!of(json!({ "norm_topk_prob": null })).0.unwrap().choice.normalised);
    let balanced = json!({ "output_router_logits": true, "router_aux_loss_coef": 0.25 });
    assert_eq!(of(balanced).0.unwrap().balance, Some(0.25));
    let window = parse(&qwen(&json!({ "use_sliding_window": true, "sliding_window": 16 }))).unwrap();
    assert_eq!(window.windows(), [Some(16); 48]);
    assert_eq!(parse(&mixtral(&json!({ "sliding_window": 4096 }))).unwrap().windows(), [Some(4096); 32]);
    let noisy = parse(&mixtral(&json!({ "router_jitter_noise": 0.1 }))).unwrap();
    assert!(noisy.notes[0].contains("router_jitter_noise"), "{:?}", noisy.notes);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (config, part) in [
        (mixtral(&json!({ "num_experts_per_tok": 9 })), "num_experts_per_tok is 9, of 8 experts"),
        (mixtral(&json!({ "num_experts_per_tok": 0 })), "num_experts_per_tok is 0"),
        (mixtral(&json!({ "hidden_act": "gelu" })), "hidden_act is gelu"),
        (qwen(&json!({ "decoder_sparse_step": 0 })), "decoder_sparse_step is 0"),
        (qwen(&json!({ "mlp_only_layers": 3 })), "mlp_only_layers is not a list"),
        (qwen(&json!({ "mlp_only_layers": [-1] })), "mlp_only_layers holds -1"),
        (qwen(&json!({ "output_router_logits": "yes" })), "output_router_logits is"),
    ] {
        let error = parse(&config).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

/// gpt-oss-20b, as OpenAI has it.
fn oss(more: &Value) -> Value {
    let kinds: Vec<&str> = (0..24).map(|it| if it % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect();
    let config = json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0, "eos_token_id": 200002,
        "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
        "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": kinds, "max_position_embeddings": 131072,
        "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false, "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert":
                ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05, "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": false,
        },
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201088,
    });
    with(&config, more)
}

#[test]
fn gpt_oss_is_understood() {
    let spec = |config: &Value| {
        let config = parse(config).unwrap();
        assert!(config.notes.is_empty(), "{:?}", config.notes);
        let Architecture::Decoder(spec) = config.architecture else { panic!("no decoder") };
        spec
    };
    let own = spec(&oss(&json!({})));
    let experts = own.experts.unwrap();
    assert_eq!((experts.count, experts.inner, experts.balance), (32, 2880, None));
    assert_eq!(experts.choice, Choice { each: 4, normalised: true });
    assert!(own.sinks && own.biases.qkv && own.biases.o && own.norm.rounds_last);
    assert_eq!(own.gate, Gate::Clamped { alpha: 1.702, limit: 7.0 });
    assert_eq!(own.windows()[..3], [Some(128), None, Some(128)]);
    // What a file leaves out is what gpt-oss was made with.
    let gone = |keys: &[&str]| {
        let mut config = oss(&json!({}));
        keys.iter().for_each(|it| drop(config.as_object_mut().unwrap().remove(*it)));
        spec(&config)
    };
    let left_out = [
        "rope_scaling",
        "rope_theta",
        "layer_types",
        "sliding_window",
        "swiglu_limit",
        "attention_bias",
        "head_dim",
        "num_key_value_heads",
        "experts_per_token",
        "initial_context_length",
    ];
    assert_eq!(gone(&left_out), own);
    for (more, part) in [
        (json!({ "quantization_config": { "quant_method": "gptq" } }), "quantised by gptq"),
        (json!({ "swiglu_limit": 0.0 }), "swiglu_limit is 0"),
        (json!({ "num_experts_per_tok": 33 }), "num_experts_per_tok is 33"),
        (json!({ "layer_types": ["full_attention"] }), "layer_types describes 1 layers"),
    ] {
        let error = parse(&oss(&more)).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let error = parse(&mixtral(&json!({ "quantization_config": { "quant_method": "mxfp4" } }))).unwrap_err();
    assert!(error.contains("quantised by mxfp4"), "{error}");
}
