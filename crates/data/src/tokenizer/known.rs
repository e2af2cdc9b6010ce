//! Every key of the JSON files beside `tokenizer.json`, and what becomes of it: none is passed over without a word that might
//! change how a text is cut or continued.

use serde_json::Value;

use super::special::Settings;

/// What is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// It is read.
    Read,
    /// It changes nothing here, for this reason.
    Irrelevant(&'static str),
    /// Anything but nothing (`null`, `false`, an empty list or object) is left out, with these words.
    LeftOut(&'static str),
    /// What it does to the continuation of texts is left out. `generate` and `chat` say so where it is not this value, with
    /// which nothing is done; `null` stands for none.
    Continuation(Neutral),
    /// A flag says it; `generate` and `chat` say so where the two differ.
    Flag(&'static str),
}

/// A value with which nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neutral {
    /// `null`, `false`, or nothing in it.
    Nothing,
    /// This number.
    Number(i32),
}

use KeyUse::{Continuation, Flag, Irrelevant, LeftOut, Read};

const FOUND: KeyUse = Irrelevant("files are found by their names");
const DECIDES: KeyUse = Irrelevant("tokenizer.json says how to cut");
const WHOLE: KeyUse = Irrelevant("rows are neither padded nor, but by --max-length, cut");
const WHO: KeyUse = Irrelevant("it tells where the file is from");
const PYTHON: KeyUse = Irrelevant("it tells a Python program what to return");
const CHATS: KeyUse = Irrelevant("the chat template says how messages are written");
const SPEED: KeyUse = Irrelevant("it chooses between ways to compute the same");
const ENCODERS: KeyUse = Irrelevant("it is for models with an encoder");
const NOTHING: KeyUse = Continuation(Neutral::Nothing);

/// The keys of `tokenizer_config.json`. Any other that ends in `_token` names a special token, too.
pub const TOKENIZER_CONFIG_KEYS: &[(&str, KeyUse)] = &[
    ("bos_token", Read),
    ("eos_token", Read),
    ("unk_token", Read),
    ("pad_token", Read),
    ("sep_token", Read),
    ("cls_token", Read),
    ("mask_token", Read),
    ("added_tokens_decoder", Read),
    ("additional_special_tokens", Read),
    ("extra_special_tokens", Read),
    ("model_specific_special_tokens", Read),
    // tokenizer.json counts; a contradiction is named.
    ("add_bos_token", Read),
    ("add_eos_token", Read),
    ("split_special_tokens", Read),
    ("truncation_side", Read),
    ("fix_mistral_regex", LeftOut("texts are cut as tokenizer.json says; save it with the corrected pattern")),
    (
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        LeftOut("spaces stay where the tokens put them"),
    ),
    ("auto_map", LeftOut("code that lies beside a model is not run; texts are cut as tokenizer.json says")),
    ("clean_up_tokenization_spaces", Irrelevant("transformers 5 does not clean up after these tokenizers")),
    ("tokenizer_class", DECIDES),
    ("add_prefix_space", DECIDES),
    ("legacy", DECIDES),
    ("errors", DECIDES),
    ("do_lower_case", DECIDES),
    ("trim_offsets", DECIDES),
    ("sp_model_kwargs", DECIDES),
    ("spaces_between_special_tokens", DECIDES),
    ("use_fast", DECIDES),
    ("from_slow", DECIDES),
    ("use_default_system_prompt", CHATS),
    // By `ChatTemplate::load`, where rows are conversations.
    ("chat_template", Read),
    ("chat_control_tokens", CHATS),
    ("response_template", CHATS),
    ("response_schema", CHATS),
    ("model_max_length", WHOLE),
    ("max_len", WHOLE),
    ("max_length", WHOLE),
    ("padding_side", WHOLE),
    ("padding", WHOLE),
    ("truncation", WHOLE),
    ("truncation_strategy", WHOLE),
    ("stride", WHOLE),
    ("pad_to_multiple_of", WHOLE),
    ("pad_token_type_id", WHOLE),
    ("vocab_file", FOUND),
    ("merges_file", FOUND),
    ("tokenizer_file", FOUND),
    ("special_tokens_map_file", FOUND),
    ("files_loaded", FOUND),
    ("is_local", FOUND),
    ("local_files_only", FOUND),
    ("name_or_path", WHO),
    ("tokenizer_type", WHO),
    ("processor_class", WHO),
    ("backend", WHO),
    ("unsloth_version", WHO),
    ("init_inputs", PYTHON),
    ("verbose", PYTHON),
    ("model_input_names", PYTHON),
    ("return_tensors", PYTHON),
    ("return_token_type_ids", PYTHON),
    ("device_map", PYTHON),
];

/// The keys of `generation_config.json`.
pub const GENERATION_CONFIG_KEYS: &[(&str, KeyUse)] = &[
    ("bos_token_id", Read),
    ("eos_token_id", Read),
    ("pad_token_id", Read),
    ("unk_token_id", Read),
    ("do_sample", Flag("--temperature")),
    ("temperature", Flag("--temperature")),
    ("top_k", Flag("--top-k")),
    ("top_p", Flag("--top-p")),
    ("repetition_penalty", Flag("--repetition-penalty")),
    ("max_new_tokens", Irrelevant("--max-new-tokens says how long a text may become")),
    ("max_length", Irrelevant("--max-new-tokens says how long a text may become")),
    ("max_time", NOTHING),
    ("min_length", Continuation(Neutral::Number(0))),
    ("min_new_tokens", Continuation(Neutral::Number(0))),
    ("min_p", Continuation(Neutral::Number(0))),
    ("top_h", NOTHING),
    ("typical_p", Continuation(Neutral::Number(1))),
    ("epsilon_cutoff", Continuation(Neutral::Number(0))),
    ("eta_cutoff", Continuation(Neutral::Number(0))),
    ("encoder_repetition_penalty", ENCODERS),
    ("encoder_no_repeat_ngram_size", ENCODERS),
    ("no_repeat_ngram_size", Continuation(Neutral::Number(0))),
    ("bad_words_ids", NOTHING),
    ("force_words_ids", NOTHING),
    ("constraints", NOTHING),
    ("forced_bos_token_id", NOTHING),
    ("forced_eos_token_id", NOTHING),
    ("suppress_tokens", NOTHING),
    ("begin_suppress_tokens", NOTHING),
    ("sequence_bias", NOTHING),
    ("stop_strings", NOTHING),
    ("token_healing", NOTHING),
    ("guidance_scale", Continuation(Neutral::Number(1))),
    ("penalty_alpha", Continuation(Neutral::Number(0))),
    ("dola_layers", NOTHING),
    ("num_beams", Continuation(Neutral::Number(1))),
    ("num_beam_groups", Continuation(Neutral::Number(1))),
    ("num_return_sequences", Continuation(Neutral::Number(1))),
    ("watermarking_config", NOTHING),
    ("exponential_decay_length_penalty", NOTHING),
    ("remove_invalid_values", Irrelevant("a prediction that is no number is an error here")),
    ("renormalize_logits", Irrelevant("probabilities are normalised when one is drawn")),
    ("length_penalty", Irrelevant("it is for beams, which are named")),
    ("early_stopping", Irrelevant("it is for beams, which are named")),
    ("diversity_penalty", Irrelevant("it is for beams, which are named")),
    ("low_memory", SPEED),
    ("use_cache", SPEED),
    ("use_mtp", SPEED),
    ("cache_config", SPEED),
    ("cache_implementation", SPEED),
    ("max_cache_len", SPEED),
    ("compile_config", SPEED),
    ("disable_compile", SPEED),
    ("continuous_batching_config", SPEED),
    ("prefill_chunk_size", SPEED),
    ("is_assistant", SPEED),
    ("num_assistant_tokens", SPEED),
    ("num_assistant_tokens_schedule", SPEED),
    ("assistant_confidence_threshold", SPEED),
    ("assistant_early_exit", SPEED),
    ("assistant_ensemble_weight", SPEED),
    ("assistant_lookbehind", SPEED),
    ("target_lookbehind", SPEED),
    ("prompt_lookup_num_tokens", SPEED),
    ("max_matching_ngram_size", SPEED),
    ("speculation_type", SPEED),
    ("decoder_start_token_id", ENCODERS),
    ("output_attentions", PYTHON),
    ("output_hidden_states", PYTHON),
    ("output_logits", PYTHON),
    ("output_scores", PYTHON),
    ("return_dict_in_generate", PYTHON),
    ("trust_remote_code", PYTHON),
    ("transformers_version", WHO),
    ("_from_model_config", WHO),
];

/// What is done with a key of one of the tables above.
pub(super) fn find(table: &[(&str, KeyUse)], key: &str) -> Option<KeyUse> {
    table.iter().find(|it| it.0 == key).map(|it| it.1)
}

/// What a user should know of the keys of `tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`.
pub(super) fn notes(files: [&Settings; 3]) -> Vec<String> {
    let tables = [TOKENIZER_CONFIG_KEYS, TOKENIZER_CONFIG_KEYS, GENERATION_CONFIG_KEYS];
    let mut notes = Vec::new();
    for (settings, table) in files.into_iter().zip(tables) {
        let file = settings.path.file_name().unwrap_or_default().to_string_lossy();
        let mut unknown = Vec::new();
        for (key, value) in &settings.values {
            match find(table, key) {
                None if key.ends_with("_token") && table == TOKENIZER_CONFIG_KEYS => {}
                None => unknown.push(key.as_str()),
                Some(LeftOut(words)) if !is_nothing(value) => {
                    notes.push(format!("{file}: {key} is not used: {words}"));
                }
                Some(_) => {}
            }
        }
        if !unknown.is_empty() {
            notes.push(format!("{file}: unknown keys ignored: {}", unknown.join(", ")));
        }
        if settings.get("truncation_side").and_then(Value::as_str) == Some("left") {
            notes.push(format!("{file}: truncation_side is left, but --max-length keeps the beginning of a row"));
        }
    }
    notes
}

/// What Python calls false, but for numbers and texts.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}
