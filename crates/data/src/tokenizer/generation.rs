//! What `generation_config.json` asks of the continuation of texts. transformers does it unless told otherwise; Halfbyte goes by its
//! flags, and says where the two differ.

use serde_json::Value;

use super::known::{GENERATION_CONFIG_KEYS, KeyUse, Neutral, is_nothing};
use super::special::Settings;

/// How `generation_config.json` would have texts continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// 0 means all tokens.
    pub top_k: usize,
    /// The probability that the tokens drawn from reach together.
    pub top_p: f32,
    /// Above 1, tokens that occurred become less probable.
    pub repetition_penalty: f32,
    /// Keys that do more, and that nothing here does, with their values.
    pub others: Vec<String>,
}

impl Default for Continuation {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, others: Vec::new() }
    }
}

impl Continuation {
    /// From the file, with transformers' defaults where it says nothing.
    pub(super) fn of(settings: &Settings) -> Self {
        let number = |key: &str| settings.get(key).and_then(Value::as_f64);
        let mut asked = Self::default();
        if settings.get("do_sample").and_then(Value::as_bool) == Some(true) {
            asked.temperature = number("temperature").unwrap_or(1.0) as f32;
            asked.top_k = number("top_k").unwrap_or(50.0) as usize;
            asked.top_p = number("top_p").unwrap_or(1.0) as f32;
        }
        asked.repetition_penalty = number("repetition_penalty").unwrap_or(1.0) as f32;
        let differs = |key: &str, what: KeyUse| {
            let value = settings.get(key)?;
            let neutral = match what {
                KeyUse::Continuation(Neutral::Number(it)) => value.as_f64() == Some(f64::from(it)),
                KeyUse::Continuation(Neutral::Nothing) => is_nothing(value),
                _ => true,
            };
            (!neutral).then(|| format!("{key} {value}"))
        };
        asked.others = GENERATION_CONFIG_KEYS.iter().filter_map(|(key, what)| differs(key, *what)).collect();
        asked
    }
}
