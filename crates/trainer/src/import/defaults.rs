//! What other programs do where a file says nothing, as far as Halfbyte would do otherwise. The values are those of axolotl 0.18,
//! LLaMA-Factory 0.9.6 with transformers 5.23, and TRL 1.16.

use super::{Import, Program, yaml::is_nothing};
use serde_json::{Map, Value};

/// The keys, any of which says it, and the value of the first where none does.
type Default = (&'static [&'static str], &'static str);

const OF_TRAINING: [Default; 2] = [(&["per_device_train_batch_size"], "8"), (&["num_train_epochs", "max_steps"], "3")];

impl Program {
    fn defaults(self) -> Vec<Default> {
        match self {
            Program::Axolotl => vec![
                (&["micro_batch_size"], "1"),
                (&["sequence_len"], "512"),
                (&["lr_scheduler", "lr_scheduler_type", "cosine_min_lr_ratio"], "cosine"),
                (&["warmup_ratio", "warmup_steps"], "0.03"),
            ],
            Program::LlamaFactory => {
                [OF_TRAINING.as_slice(), &[(&["cutoff_len"], "2048"), (&["learning_rate"], "5e-5")]].concat()
            }
            Program::Trl => {
                [OF_TRAINING.as_slice(), &[(&["max_length"], "1024"), (&["learning_rate"], "2e-5")]].concat()
            }
        }
    }

    fn defaults_of_adapters(self) -> Vec<Default> {
        match self {
            Program::Axolotl => Vec::new(),
            Program::LlamaFactory => vec![(&["lora_rank"], "8")],
            Program::Trl => vec![(&["lora_r"], "16"), (&["lora_alpha"], "32"), (&["lora_dropout"], "0.05")],
        }
    }
}

/// Says what the file does not.
pub(super) fn fill_in(import: &mut Import, keys: &Map<String, Value>, trains_an_adapter: bool) {
    let said = |key: &str| keys.get(key).filter(|it| !is_nothing(it));
    let mut defaults = import.program.defaults();
    if trains_an_adapter {
        defaults.extend(import.program.defaults_of_adapters());
    }
    for (names, value) in defaults {
        if !names.iter().any(|it| said(it).is_some()) {
            import.fill_in(names[0], value);
        }
    }
    if import.program == Program::LlamaFactory && trains_an_adapter && said("lora_alpha").is_none() {
        let rank = said("lora_rank").and_then(Value::as_u64).unwrap_or(8);
        import.fill_in("lora_alpha", &(2 * rank).to_string());
    }
    if import.program == Program::Trl {
        if said("load_in_4bit") == Some(&Value::Bool(true)) && said("use_bnb_nested_quant").is_none() {
            import.fill_in("double_quant", "off");
        }
        if said("assistant_only_loss").is_none() && said("completion_only_loss").is_none() {
            import.leave_out(
                "assistant_only_loss",
                "is not set: of conversations TRL then learns every token, and here only what the assistant says is learned; loss_on = \"all\" does as TRL",
            );
        }
    }
}
