//! Flags as other programs spell them: those of transformers' and TRL's scripts, of LLaMA-Factory and of axolotl are taken where they
//! mean the same here, and answered where they do not.

mod table;

use crate::{console, failure::user_error};
use Spelling::{Answer, Anyway, Is, Means, Switch, Within};
use std::ffi::OsString;
use table::{FOUR_BITS, LORA, SPELLINGS};

/// What becomes of a flag.
#[derive(Clone, Copy)]
enum Spelling {
    /// Another name for this flag.
    Is(&'static str),
    /// A flag that takes no value here, and `True` or `False` there.
    Switch(&'static str),
    /// With this value (none: any), these flags.
    Means(Option<&'static str>, &'static [&'static str]),
    /// For this flag, with something before and after its value.
    Within(&'static str, &'static str, &'static str),
    /// It asks for what is done anyway, or not done anyway: nothing becomes of it.
    Anyway,
    /// There is no such thing; what to do instead.
    Answer(&'static str),
}

/// What another program's flag is here.
pub(crate) enum Translated {
    /// These.
    Ours(Vec<OsString>),
    /// Nothing: it changes nothing.
    Anyway,
    /// There is no such thing, or not this value: what to do instead.
    Answer(String),
}

/// The arguments of a command as clap is to see them, the first of which is the program.
///
/// # Errors
/// A flag of another program that means nothing here, with what to do.
pub fn normalised(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Vec<OsString>> {
    let args: Vec<OsString> = args.into_iter().map(dashed).collect();
    // Only a training has been written for other programs.
    if args.get(1).is_none_or(|it| it != "finetune") {
        return Ok(args);
    }
    let mut out = Ours::default();
    let mut rest = args.into_iter().peekable();
    while let Some(arg) = rest.next() {
        let Some((name, attached)) = arg.to_str().and_then(flag).filter(|it| is_known(&it.0)) else {
            out.flags.push(arg);
            continue;
        };
        let value = match attached {
            Some(value) => Some(OsString::from(value)),
            None => rest.next_if(|it| !it.to_str().is_some_and(|it| it.starts_with("--"))),
        };
        match translated(&name, value) {
            Translated::Ours(flags) => out.take(flags),
            Translated::Anyway => console::warn(&format!("--{name} changes nothing here and is left out")),
            Translated::Answer(words) => return Err(user_error(format!("--{name}{words}"))),
        }
    }
    Ok(out.finish())
}

/// Our flags, come from those of another program.
#[derive(Default)]
pub(crate) struct Ours {
    pub(crate) flags: Vec<OsString>,
    lora: bool,
    four_bits: bool,
}

impl Ours {
    pub(crate) fn take(&mut self, flags: Vec<OsString>) {
        match flags {
            it if it == LORA => self.lora = true,
            it if it == FOUR_BITS => self.four_bits = true,
            it => self.flags.extend(it),
        }
    }

    /// Elsewhere one flag says four bits and another which, and LoRA is LoRA, whether the base is quantised or not; here one flag says
    /// the format, and there is a name for either.
    pub(crate) fn finish(mut self) -> Vec<OsString> {
        if self.four_bits && self.format().is_none() {
            self.flags.extend(FOUR_BITS.iter().map(OsString::from));
        }
        if self.lora && self.format().is_none_or(|it| it == "none") {
            self.flags.extend(LORA.iter().map(OsString::from));
        }
        self.flags
    }

    /// What `--quant` says.
    fn format(&self) -> Option<&str> {
        let mut flags = self.flags.iter().map(|it| it.to_str().unwrap_or_default());
        flags
            .find_map(|it| it.strip_prefix("--quant").filter(|it| it.is_empty() || it.starts_with('=')))
            .and_then(|attached| attached.strip_prefix('=').or_else(|| flags.next()))
    }
}

/// Whether it is a flag of another program, by its name with dashes.
pub(crate) fn is_known(name: &str) -> bool {
    SPELLINGS.iter().any(|it| it.0 == name)
}

/// The name of a flag and the value after its `=`.
fn flag(arg: &str) -> Option<(String, Option<String>)> {
    let text = arg.strip_prefix("--").filter(|it| !it.is_empty())?;
    let (name, value) = text.split_once('=').map_or((text, None), |it| (it.0, Some(it.1.to_owned())));
    Some((name.to_owned(), value))
}

/// What a known flag of another program is here.
pub(crate) fn translated(name: &str, value: Option<OsString>) -> Translated {
    // A flag without a value is switched on.
    let said = value.as_ref().map_or_else(|| "true".to_owned(), |it| it.to_string_lossy().to_lowercase());
    let of = |flags: &[&str]| flags.iter().map(OsString::from).collect::<Vec<_>>();
    let mut values = Vec::new();
    for (_, spelling) in SPELLINGS.iter().filter(|it| it.0 == name) {
        return match spelling {
            Means(Some(with), _) if *with != said => {
                values.push(*with);
                continue;
            }
            Means(_, flags) => Translated::Ours(of(flags)),
            Switch(_) if said == "false" => Translated::Ours(Vec::new()),
            Switch(ours) if said == "true" => Translated::Ours(of(&[ours])),
            // Ours takes no value, and what follows is for clap to name.
            Is(ours) | Switch(ours) => Translated::Ours(of(&[ours]).into_iter().chain(value).collect()),
            Within(ours, before, after) => Translated::Ours(of(&[ours, &format!("{before}{said}{after}")])),
            Anyway => Translated::Anyway,
            Answer(words) => Translated::Answer(format!(": {words}")),
        };
    }
    Translated::Answer(format!(" {said}: known values are {}", values.join(", ")))
}

/// Flags as Python programs spell them, `--lora_alpha` for `--lora-alpha`.
fn dashed(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|it| it.starts_with("--")) else { return arg };
    let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
    format!("{}{value}", name.replace('_', "-")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<String, String> {
        let args = format!("halfbyte {line}");
        let args = normalised(args.split(' ').map(OsString::from)).map_err(|error| error.to_string())?;
        let args: Vec<String> = args[1..].iter().map(|it| it.to_string_lossy().into_owned()).collect();
        Ok(args.join(" "))
    }

    #[test]
    fn other_programs_flags_are_ours() {
        for (theirs, ours) in [
            ("--model_name_or_path X --lora_alpha 8", "--model X --lora-alpha 8"),
            ("--model_name_or_path=X --bf16 True --fp16 False", "--model X --bf16"),
            ("--bf16 --packing", "--bf16 --packing"),
            ("--load_in_4bit --lora_target all", "--target-modules all-linear --quant nf4"),
            ("--load_in_4bit True --use_rslora true", "--use-rslora --quant nf4"),
            ("--quantization_bit 8 --stage sft --do_train true", "--quant int8"),
            ("--eval_strategy steps --eval_steps 5", "--eval-steps 5"),
            ("--val_size 0.1 --val_set_size 0.0", "--eval-split 0.1"),
            ("--save_strategy no", "--save-steps 0"),
            ("--eval_strategy epoch --save_strategy epoch", "--eval-steps epoch --save-steps epoch"),
            ("--evals_per_epoch 4 --max_samples 1000", "--eval-steps 4/epoch --rows 0..1000"),
            ("--load_best_model_at_end True --metric_for_best_model eval_loss", "--load-best-model-at-end"),
            ("--load_best_model_at_end --greater_is_better False", "--load-best-model-at-end"),
            ("--early_stopping_patience 3", "--early-stopping-patience 3"),
            ("--max_steps -1 --bf16 auto --resume_from_checkpoint", "--resume"),
            ("--use_peft --lora_r 8", "--lora-r 8 --method lora"),
            ("--use_peft --load_in_4bit", "--quant nf4"),
            ("--bnb_4bit_quant_type fp4 --load_in_4bit True --use_peft", "--quant fp4"),
            ("--finetuning_type lora --quant=nf4", "--quant=nf4"),
            ("--dtype bfloat16", "--compute-dtype bf16"),
            ("--assistant_only_loss True", "--loss-on assistant"),
            ("--overwrite_output_dir", "--overwrite"),
            ("--use_gradient_checkpointing unsloth", "--gradient-checkpointing on --offload-activations on"),
            ("--gradient_checkpointing offload --bf16", "--gradient-checkpointing on --offload-activations on --bf16"),
            ("--gradient_checkpointing --bf16", "--gradient-checkpointing --bf16"),
            ("--gradient_checkpointing=True", "--gradient-checkpointing True"),
            ("--activation_offloading True", "--offload-activations True"),
            ("--enable_activation_offloading", "--offload-activations"),
            ("--data a b", "--data a b"),
        ] {
            assert_eq!(of(&format!("finetune {theirs}")).unwrap(), format!("finetune {ours}"), "{theirs}");
        }
        assert_eq!(
            of("eval --adapter lora --max_length 3").unwrap(),
            "eval --adapter lora --max-length 3",
            "of training alone"
        );
    }

    #[test]
    fn what_means_nothing_here_is_answered() {
        for (theirs, words) in [
            ("--metric_for_best_model accuracy", "lowest held-out loss"),
            ("--resume_from_checkpoint out/checkpoint-3", "newest checkpoint"),
            ("--neftune_noise_alpha 5", "no noise"),
            ("--report_to wandb", "metrics.jsonl"),
            ("--eval_strategy often", "known values are steps, epoch, no"),
            ("--quantization_bit 3", "known values are 4, 8"),
            ("--trust_remote_code", "never run"),
        ] {
            let answer = of(&format!("finetune {theirs}")).unwrap_err();
            assert!(answer.contains(words), "{answer}");
        }
    }

    #[test]
    fn each_of_our_names_is_a_flag() {
        use clap::CommandFactory;
        let command = crate::Cli::command();
        let finetune = command.find_subcommand("finetune").unwrap();
        let exists = |flag: &str| {
            let name = flag.trim_start_matches("--");
            finetune.get_arguments().any(|it| it.get_long() == Some(name))
        };
        for (name, spelling) in SPELLINGS {
            let ours: Vec<&str> = match spelling {
                Is(ours) | Switch(ours) | Within(ours, ..) => vec![ours],
                Means(_, flags) => flags.iter().copied().filter(|it| it.starts_with("--")).collect(),
                _ => Vec::new(),
            };
            assert!(ours.iter().all(|it| exists(it)), "{name}: {ours:?}");
        }
    }
}
