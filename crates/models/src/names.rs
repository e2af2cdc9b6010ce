//! What tensors are called. Wrappers put names before those of the model, and a model that was saved without its head lacks the
//! one that is usual; transformers reads all of these.

use crate::{Architecture, GptKind, GptSpec, ModelConfig, model::HEAD};

/// What PEFT, torch.compile and DistributedDataParallel put before the names of what they wrap.
const WRAPPERS: [&str; 3] = ["base_model.model.", "_orig_mod.", "module."];

/// The model without its head: its name, and those of what it consists of.
fn body(config: &ModelConfig) -> (&'static str, [&'static str; 4]) {
    match &config.architecture {
        Architecture::Decoder(_) => ("model", ["embed_tokens", "layers", "norm", "rotary_emb"]),
        Architecture::Gpt(GptSpec { kind, .. }) => (kind.names().body, kind.names().parts),
    }
}

/// The name of the embedding.
pub(crate) fn embedding(config: &ModelConfig) -> String {
    let (body, parts) = body(config);
    format!("{body}.{}.weight", parts[0])
}

/// What a model asks for instead of `name`; none where it asks for that.
pub(crate) fn canonical(config: &ModelConfig, name: &str) -> Option<String> {
    let mut bare = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|it| bare.strip_prefix(it)) {
        bare = rest;
    }
    let mut found = bare.replace(".base_layer.", ".");
    let (body, parts) = body(config);
    if found.split_once('.').is_some_and(|(first, _)| parts.contains(&first)) {
        found = format!("{body}.{found}");
    }
    // What older files call the head of a GPT-NeoX.
    if let (Architecture::Gpt(GptSpec { kind: GptKind::NeoX, .. }), Some(rest)) =
        (&config.architecture, found.strip_prefix("embed_out."))
    {
        found = format!("{HEAD}.{rest}");
    }
    (found != name).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn older_files_of_gpts_have_the_names_of_today() {
        let config = |model_type: &str| {
            let text = json!({ "model_type": model_type, "hidden_size": 32, "num_attention_heads": 2 }).to_string();
            ModelConfig::parse(Path::new("config.json"), &text).unwrap()
        };
        let (neox, two) = (config("gpt_neox"), config("gpt2"));
        assert_eq!(canonical(&neox, "embed_out.weight").as_deref(), Some("lm_head.weight"));
        let bare = "layers.0.attention.query_key_value.weight";
        assert_eq!(canonical(&neox, bare), Some(format!("gpt_neox.{bare}")));
        assert_eq!(canonical(&neox, "gpt_neox.embed_in.weight"), None);
        // As the hub has GPT-2.
        assert_eq!(canonical(&two, "h.0.attn.c_attn.weight").as_deref(), Some("transformer.h.0.attn.c_attn.weight"));
        assert_eq!(canonical(&two, "embed_out.weight"), None);
    }
}
