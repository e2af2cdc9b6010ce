//! Every key of a `config.json`, and what becomes of it: none is passed over without a word that might change a result.
//!
//! Read is what transformers reads for these architectures, including what older versions wrote. `cargo test --test halfbyte -- keys`
//! holds the table against the configuration classes' own.

use super::keys::Parsed;
use halfbyte_files::{
    KeyTable,
    KeyUse::{self, Irrelevant, LeftOut, Read, ReadIn, Refused},
};
use serde_json::{Map, Value};

const DECODERS: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "gemma2",
    "gemma3_text",
    "phi3",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
];
const SILU: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "phi3",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
];
const ROTATED: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
];
const BIASED: &[&str] =
    &["llama", "qwen3", "smollm3", "granite", "olmo2", "gemma2", "gemma3_text", "gpt_neox", "qwen3_moe", "gpt_oss"];
const NEO: &[&str] = &["gpt_neo"];
const NEOX: &[&str] = &["gpt_neox"];
const TWO: &[&str] = &["gpt2", "gptj"];
const GELU_NEW: &[&str] = &["gpt_neo", "gpt2", "gptj"];
const WINDOWED: &[&str] =
    &["mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen3_moe", "gpt_oss"];
const LISTED: &[&str] =
    &["mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "mixtral", "gpt_oss"];
const SOME_WINDOWED: &[&str] = &["qwen2", "qwen3", "smollm3", "qwen3_moe"];
const EXPERTS: &[&str] = &["mixtral", "qwen3_moe", "gpt_oss"];
const QWEN_EXPERTS: &[&str] = &["qwen3_moe"];
const PDROPS: &[&str] = &["phi3", "gpt2", "gptj"];
const OSS: &[&str] = &["gpt_oss"];
const GRANITE: &[&str] = &["granite"];
const GEMMA: &[&str] = &["gemma2", "gemma3_text"];

const WHO: KeyUse = Irrelevant("it tells where the file is from");
const OUTPUT: KeyUse = Irrelevant("it tells a Python program what to return");
const SPEED: KeyUse = Irrelevant("it chooses between ways to compute the same");
const FRESH: KeyUse = Irrelevant("weights are read, not drawn");
const HEADS: KeyUse = Irrelevant("it is for heads that classify");
const SAMPLING: KeyUse = Irrelevant("transformers 5 takes how to continue a text from generation_config.json");
const ENCODERS: KeyUse = Irrelevant("it is for models with an encoder");

/// The keys of `config.json`.
pub const CONFIG: KeyTable = KeyTable { file: "config.json", keys: CONFIG_KEYS };

/// The keys of the `quantization_config` of a folder that bitsandbytes wrote.
pub const QUANTIZATION: KeyTable = KeyTable { file: "quantization_config", keys: QUANTIZATION_KEYS };

const CONFIG_KEYS: &[(&str, KeyUse)] = &[
    ("architectures", Read),
    ("model_type", Read),
    ("vocab_size", Read),
    ("hidden_size", Read),
    ("intermediate_size", Read),
    ("num_hidden_layers", Read),
    ("num_attention_heads", Read),
    ("max_position_embeddings", Read),
    ("tie_word_embeddings", Read),
    ("quantization_config", Read),
    ("bos_token_id", Read),
    ("eos_token_id", Read),
    ("pad_token_id", Read),
    ("unk_token_id", Read),
    // Said to be left out where it is not 0.
    ("attention_dropout", Read),
    ("num_key_value_heads", ReadIn(DECODERS)),
    ("head_dim", ReadIn(DECODERS)),
    ("hidden_act", ReadIn(SILU)),
    ("hidden_activation", ReadIn(GEMMA)),
    ("rms_norm_eps", ReadIn(DECODERS)),
    ("rope_theta", ReadIn(DECODERS)),
    ("rope_scaling", ReadIn(ROTATED)),
    ("rope_parameters", ReadIn(ROTATED)),
    ("partial_rotary_factor", ReadIn(DECODERS)),
    ("original_max_position_embeddings", ReadIn(DECODERS)),
    ("attention_bias", ReadIn(BIASED)),
    ("mlp_bias", ReadIn(&["llama", "smollm3", "granite"])),
    ("sliding_window", ReadIn(WINDOWED)),
    ("layer_types", ReadIn(LISTED)),
    ("use_sliding_window", ReadIn(SOME_WINDOWED)),
    // Qwen3-MoE has the key, and there all layers have the window or none.
    ("max_window_layers", ReadIn(&["qwen2", "qwen3", "qwen3_moe"])),
    ("num_local_experts", ReadIn(EXPERTS)),
    ("num_experts", ReadIn(EXPERTS)),
    ("num_experts_per_tok", ReadIn(EXPERTS)),
    ("output_router_logits", ReadIn(EXPERTS)),
    ("router_aux_loss_coef", ReadIn(EXPERTS)),
    ("experts_per_token", ReadIn(OSS)),
    ("swiglu_limit", ReadIn(OSS)),
    ("swiglu_alpha", ReadIn(OSS)),
    ("initial_context_length", Irrelevant("rope_scaling says it")),
    ("router_jitter_noise", ReadIn(&["mixtral"])),
    ("moe_intermediate_size", ReadIn(QWEN_EXPERTS)),
    ("norm_topk_prob", ReadIn(QWEN_EXPERTS)),
    ("decoder_sparse_step", ReadIn(QWEN_EXPERTS)),
    ("mlp_only_layers", ReadIn(QWEN_EXPERTS)),
    ("no_rope_layers", ReadIn(&["smollm3"])),
    ("no_rope_layer_interval", ReadIn(&["smollm3"])),
    ("embedding_multiplier", ReadIn(GRANITE)),
    ("residual_multiplier", ReadIn(GRANITE)),
    ("attention_multiplier", ReadIn(GRANITE)),
    ("logits_scaling", ReadIn(GRANITE)),
    ("query_pre_attn_scalar", ReadIn(GEMMA)),
    // Gemma 3 has the key, and transformers no use for it.
    ("attn_logit_softcapping", ReadIn(&["gemma2"])),
    ("final_logit_softcapping", ReadIn(GEMMA)),
    ("sliding_window_pattern", ReadIn(&["gemma3_text"])),
    ("_sliding_window_pattern", Irrelevant("layer_types, which is written with it, says which layers have a window")),
    ("rope_local_base_freq", ReadIn(&["gemma3_text"])),
    ("use_bidirectional_attention", Refused("only models whose tokens see those before them are read")),
    ("num_layers", ReadIn(NEO)),
    ("num_heads", ReadIn(NEO)),
    ("activation_function", ReadIn(GELU_NEW)),
    ("attention_layers", ReadIn(NEO)),
    ("attention_types", ReadIn(NEO)),
    ("window_size", ReadIn(NEO)),
    ("layer_norm_epsilon", ReadIn(GELU_NEW)),
    ("layer_norm_eps", ReadIn(NEOX)),
    ("rotary_pct", ReadIn(NEOX)),
    ("rotary_emb_base", ReadIn(NEOX)),
    ("use_parallel_residual", ReadIn(NEOX)),
    ("hidden_dropout", ReadIn(NEOX)),
    ("n_embd", ReadIn(TWO)),
    ("n_layer", ReadIn(TWO)),
    ("n_head", ReadIn(TWO)),
    ("n_inner", ReadIn(TWO)),
    ("n_positions", ReadIn(TWO)),
    ("rotary_dim", ReadIn(&["gptj"])),
    ("rotary", Irrelevant("rotary_dim says how much of every head is rotated")),
    ("n_ctx", Irrelevant("n_positions says how many positions there are")),
    ("attn_pdrop", ReadIn(TWO)),
    ("scale_attn_weights", ReadIn(TWO)),
    ("scale_attn_by_inverse_layer_idx", Refused("scores of all layers are scaled alike")),
    ("reorder_and_upcast_attn", SPEED),
    ("resid_pdrop", ReadIn(PDROPS)),
    ("embd_pdrop", ReadIn(PDROPS)),
    ("resid_dropout", ReadIn(NEO)),
    ("embed_dropout", ReadIn(NEO)),
    ("per_layer_config", Refused("every layer must have the same settings")),
    ("pruned_heads", Refused("save the model without them: the weights of pruned heads are of another shape")),
    (
        "auto_map",
        LeftOut("code that lies beside a model is not run; the architecture is read as transformers knows it"),
    ),
    ("add_cross_attention", Refused("there is no encoder to attend to")),
    ("dtype", Irrelevant("tensors are loaded as they are stored; --compute-dtype says how to compute")),
    ("torch_dtype", Irrelevant("as dtype")),
    ("pretraining_tp", Irrelevant("transformers 5 does not split products any more")),
    ("initializer_range", FRESH),
    ("_name_or_path", WHO),
    ("name_or_path", WHO),
    ("_commit_hash", WHO),
    ("transformers_version", WHO),
    ("transformers.js_config", WHO),
    ("unsloth_version", WHO),
    ("unsloth_fixed", WHO),
    ("license", WHO),
    ("base_model_tp_plan", SPEED),
    ("base_model_pp_plan", SPEED),
    ("tokenizer_class", Irrelevant("tokenizer.json says how to cut")),
    ("prefix", Irrelevant("it is put before texts by pipelines, and no pipeline is run here")),
    ("use_cache", SPEED),
    ("cache_implementation", SPEED),
    ("chunk_size_feed_forward", SPEED),
    ("_attn_implementation", SPEED),
    ("attn_implementation", SPEED),
    ("_attn_implementation_autoset", SPEED),
    ("_flash_attn_2_enabled", SPEED),
    ("torchscript", SPEED),
    ("use_bfloat16", SPEED),
    ("gradient_checkpointing", SPEED),
    ("low_cpu_mem_usage", SPEED),
    ("output_attentions", OUTPUT),
    ("output_hidden_states", OUTPUT),
    ("return_dict", OUTPUT),
    ("tie_last_hidden_states", OUTPUT),
    ("keys_to_ignore_at_inference", OUTPUT),
    ("id2label", HEADS),
    ("label2id", HEADS),
    ("num_labels", HEADS),
    ("problem_type", HEADS),
    ("classifier_dropout", HEADS),
    ("finetuning_task", HEADS),
    ("task_specific_params", HEADS),
    ("summary_type", HEADS),
    ("summary_use_proj", HEADS),
    ("summary_activation", HEADS),
    ("summary_proj_to_labels", HEADS),
    ("summary_first_dropout", HEADS),
    ("is_decoder", ENCODERS),
    ("is_encoder_decoder", ENCODERS),
    ("tie_encoder_decoder", ENCODERS),
    ("cross_attention_hidden_size", ENCODERS),
    ("decoder_start_token_id", ENCODERS),
    ("sep_token_id", Irrelevant("no separator is put anywhere")),
    ("tf_legacy_loss", Irrelevant("it is for TensorFlow")),
    ("max_length", SAMPLING),
    ("min_length", SAMPLING),
    ("do_sample", SAMPLING),
    ("early_stopping", SAMPLING),
    ("num_beams", SAMPLING),
    ("num_beam_groups", SAMPLING),
    ("diversity_penalty", SAMPLING),
    ("temperature", SAMPLING),
    ("top_k", SAMPLING),
    ("top_p", SAMPLING),
    ("typical_p", SAMPLING),
    ("repetition_penalty", SAMPLING),
    ("length_penalty", SAMPLING),
    ("no_repeat_ngram_size", SAMPLING),
    ("encoder_no_repeat_ngram_size", SAMPLING),
    ("bad_words_ids", SAMPLING),
    ("num_return_sequences", SAMPLING),
    ("output_scores", SAMPLING),
    ("return_dict_in_generate", SAMPLING),
    ("forced_bos_token_id", SAMPLING),
    ("forced_eos_token_id", SAMPLING),
    ("remove_invalid_values", SAMPLING),
    ("exponential_decay_length_penalty", SAMPLING),
    ("suppress_tokens", SAMPLING),
    ("begin_suppress_tokens", SAMPLING),
];

const EACH: KeyUse = Irrelevant("every quantised weight says it for itself");

const QUANTIZATION_KEYS: &[(&str, KeyUse)] = &[
    ("quant_method", Read),
    ("load_in_4bit", Read),
    ("load_in_8bit", Read),
    ("llm_int8_skip_modules", Read),
    ("llm_int8_threshold", Read),
    ("modules_to_not_convert", Irrelevant("every weight says for itself how it is stored")),
    ("dequantize", SPEED),
    ("_load_in_4bit", EACH),
    ("_load_in_8bit", EACH),
    ("bnb_4bit_quant_type", EACH),
    ("bnb_4bit_use_double_quant", EACH),
    ("bnb_4bit_blocksize", EACH),
    ("bnb_4bit_quant_storage", Irrelevant("the bytes of codes are read whatever dtype they are stored as")),
    ("bnb_4bit_compute_dtype", Irrelevant("--compute-dtype says how to compute")),
    ("llm_int8_enable_fp32_cpu_offload", Irrelevant("the model lies on one device")),
    (
        "llm_int8_has_fp16_weight",
        Refused("the weights must be stored in 8 bits: save them so, or load the original ones"),
    ),
    ("dynamic", LeftOut("what each layer is stored as counts")),
];

/// Refuses what would change a result and is not understood, and says what is left out of `config.json`.
pub(super) fn check(raw: &Map<String, Value>, model_type: &str) -> Parsed<Vec<String>> {
    let mut notes = CONFIG.check(raw, model_type)?;
    if let Some(Value::Object(settings)) = raw.get("quantization_config") {
        notes.extend(QUANTIZATION.check(settings, model_type)?);
        let threshold = settings.get("llm_int8_threshold").and_then(Value::as_f64);
        if let Some(it) = threshold.filter(|it| *it != 6.0 && settings.get("load_in_8bit") == Some(&Value::Bool(true)))
        {
            return Err(format!(
                "quantization_config: llm_int8_threshold is {it}, and outliers are those from 6 on here; load the original weights and choose --quant"
            ));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(config: Value, model_type: &str) -> Parsed<String> {
        check(config.as_object().unwrap(), model_type).map(|it| it.join("\n"))
    }

    #[test]
    fn a_key_stands_in_a_table_once() {
        for table in [CONFIG, QUANTIZATION] {
            let mut names: Vec<&str> = table.keys.iter().map(|it| it.0).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|it| it[0] != it[1]), "{names:?}");
        }
    }

    #[test]
    fn the_tables_are_asked() {
        assert!(told(json!({"sliding_window": 4}), "mistral").unwrap().is_empty());
        assert!(told(json!({"sliding_window": 4}), "llama").unwrap().ends_with("sliding_window"));
        assert!(told(json!({"residual_multiplier": 2.0}), "llama").unwrap().contains("residual_multiplier"));
        assert!(told(json!({"per_layer_config": {"0": {}}}), "llama").unwrap_err().contains("per_layer_config"));
        let of = |settings: Value| told(json!({ "quantization_config": settings }), "llama");
        assert!(of(json!({"load_in_8bit": true, "llm_int8_threshold": 6.0})).unwrap().is_empty());
        assert!(of(json!({"load_in_8bit": true, "llm_int8_threshold": 5.0})).unwrap_err().contains("threshold is 5"));
        assert!(of(json!({"load_in_4bit": true, "llm_int8_threshold": 5.0})).unwrap().is_empty());
        assert!(of(json!({"llm_int8_has_fp16_weight": true})).is_err());
        assert!(of(json!({"bits_of_luck": 3})).unwrap().starts_with("quantization_config: unknown"));
    }
}
