//! Flags as other programs spell them: those of transformers' and TRL's scripts, of LLaMA-Factory and of axolotl are taken where they
//! mean the same here, and answered where they do not.

use crate::{console, failure::user_error};
use std::ffi::OsString;

/// What becomes of a flag.
#[derive(Clone, Copy)]
enum Spelling {
    /// Another name for this flag.
    Is(&'static str),
    /// A flag that takes no value here, and `True` or `False` there.
    Switch(&'static str),
    /// With this value (none: any), these flags.
    Means(Option<&'static str>, &'static [&'static str]),
    /// It asks for what is done anyway, or not done anyway: nothing becomes of it.
    Anyway,
    /// There is no such thing; what to do instead.
    Answer(&'static str),
}

use Spelling::{Answer, Anyway, Is, Means, Switch};

/// By their names with dashes. Of several lines for a flag the first with its value counts.
const SPELLINGS: &[(&str, Spelling)] = &[
    ("model-name-or-path", Is("--model")),
    ("base-model", Is("--model")),
    ("adapter-name-or-path", Is("--init-adapter")),
    ("dataset", Is("--data")),
    ("dataset-name", Is("--data")),
    ("dataset-path", Is("--data")),
    ("train-file", Is("--data")),
    ("eval-dataset", Is("--eval-data")),
    ("validation-file", Is("--eval-data")),
    ("dataset-text-field", Is("--text-column")),
    ("chat-template-path", Is("--chat-template")),
    ("cutoff-len", Is("--max-length")),
    ("sequence-len", Is("--max-length")),
    ("model-max-length", Is("--max-length")),
    ("micro-batch-size", Is("--per-device-train-batch-size")),
    ("num-epochs", Is("--num-train-epochs")),
    ("lr-scheduler", Is("--lr-scheduler-type")),
    ("optimizer", Is("--optim")),
    ("lora-rank", Is("--rank")),
    ("lora-target", Means(Some("all"), &["--target-modules", "all-linear"])),
    ("lora-target", Is("--target-modules")),
    ("lora-target-modules", Is("--target-modules")),
    ("lora-target-linear", Means(Some("true"), &["--target-modules", "all-linear"])),
    ("lora-modules-to-save", Is("--modules-to-save")),
    ("additional-target", Is("--modules-to-save")),
    ("load-in-4bit", Means(Some("true"), &["--quant", "nf4"])),
    ("load-in-8bit", Means(Some("true"), &["--quant", "int8"])),
    ("load-in-4bit", Means(Some("false"), &[])),
    ("load-in-8bit", Means(Some("false"), &[])),
    ("quantization-bit", Means(Some("4"), &["--quant", "nf4"])),
    ("quantization-bit", Means(Some("8"), &["--quant", "int8"])),
    ("bnb-4bit-quant-type", Is("--quant")),
    ("bnb-4bit-use-double-quant", Is("--double-quant")),
    ("use-bnb-nested-quant", Means(Some("true"), &["--double-quant", "on"])),
    ("bnb-4bit-compute-dtype", Is("--compute-dtype")),
    ("finetuning-type", Means(Some("lora"), &[])),
    ("finetuning-type", Means(Some("full"), &["--method", "full"])),
    ("adapter", Means(Some("qlora"), &["--method", "qlora"])),
    ("adapter", Means(Some("lora"), &["--method", "lora"])),
    ("stage", Means(Some("sft"), &[])),
    ("use-peft", Means(Some("true"), &[])),
    ("bf16", Switch("--bf16")),
    ("fp16", Switch("--fp16")),
    ("tf32", Anyway),
    ("use-rslora", Switch("--use-rslora")),
    ("use-dora", Switch("--use-dora")),
    ("train-on-prompt", Switch("--train-on-inputs")),
    ("train-on-inputs", Switch("--train-on-inputs")),
    ("assistant-only-loss", Means(Some("true"), &["--loss-on", "assistant"])),
    ("assistant-only-loss", Means(Some("false"), &["--loss-on", "all"])),
    ("completion-only-loss", Means(Some("true"), &["--loss-on", "completion"])),
    ("completion-only-loss", Means(Some("false"), &["--loss-on", "all"])),
    ("mask-history", Means(Some("true"), &["--loss-on", "last"])),
    ("sample-packing", Is("--packing")),
    ("overwrite-output-dir", Switch("--overwrite")),
    ("dataloader-drop-last", Switch("--drop-last")),
    ("overwrite-cache", Anyway),
    ("do-train", Anyway),
    ("do-eval", Anyway),
    ("remove-unused-columns", Anyway),
    ("dataloader-num-workers", Anyway),
    ("dataloader-pin-memory", Anyway),
    ("preprocessing-num-workers", Anyway),
    ("dataset-num-proc", Anyway),
    ("gradient-checkpointing-kwargs", Anyway),
    ("use-liger-kernel", Anyway),
    ("flash-attn", Anyway),
    ("flash-attention", Anyway),
    ("attn-implementation", Anyway),
    ("padding-free", Anyway),
    ("group-by-length", Anyway),
    ("pad-to-sequence-len", Anyway),
    ("trust-remote-code", Means(Some("false"), &[])),
    ("trust-remote-code", Answer("code that lies beside a model is never run; leave it out")),
    ("logging-strategy", Means(Some("steps"), &[])),
    ("save-strategy", Means(Some("steps"), &[])),
    ("save-strategy", Means(Some("no"), &["--save-steps", "0"])),
    ("save-strategy", Answer("checkpoints come every --save-steps; there is no other strategy")),
    ("eval-strategy", Means(Some("steps"), &[])),
    ("eval-strategy", Means(Some("no"), &["--eval-steps", "0"])),
    (
        "eval-strategy",
        Answer("the held-out loss is measured every --eval-steps, before and after; there is no other strategy"),
    ),
    ("evaluation-strategy", Means(Some("steps"), &[])),
    ("evaluation-strategy", Means(Some("no"), &["--eval-steps", "0"])),
    (
        "evaluation-strategy",
        Answer("the held-out loss is measured every --eval-steps, before and after; there is no other strategy"),
    ),
    ("report-to", Means(Some("none"), &[])),
    ("report-to", Answer("nothing is reported over the network; metrics.jsonl in the output folder has every step")),
    ("push-to-hub", Means(Some("false"), &[])),
    ("push-to-hub", Answer("nothing is sent anywhere; upload the output folder with huggingface-cli")),
    ("deepspeed", Answer("one process trains on one device; --optim-resident-mib pages the optimizer's state")),
    ("template", Answer("the model's own chat template is taken; --chat-template FILE takes another")),
    ("load-best-model-at-end", Means(Some("false"), &[])),
    (
        "load-best-model-at-end",
        Answer(
            "the last state is saved; --eval-steps with --save-steps shows which checkpoint was best, and eval takes its folder",
        ),
    ),
    ("early-stopping-patience", Answer("a run takes all its steps; Ctrl-C ends it with a checkpoint")),
    ("neftune-noise-alpha", Answer("no noise is added to embeddings here; leave it out")),
];

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
    let mut out = Vec::with_capacity(args.len());
    let mut rest = args.into_iter().peekable();
    while let Some(arg) = rest.next() {
        let Some((name, attached)) = arg.to_str().and_then(flag) else {
            out.push(arg);
            continue;
        };
        let known: Vec<Spelling> = SPELLINGS.iter().filter(|it| it.0 == name).map(|it| it.1).collect();
        if known.is_empty() {
            out.push(arg);
            continue;
        }
        let value = match attached {
            Some(value) => Some(OsString::from(value)),
            None => rest.next_if(|it| !it.to_str().is_some_and(|it| it.starts_with("--"))),
        };
        translate(&name, value, &known, &mut out)?;
    }
    Ok(out)
}

/// The name of a flag and the value after its `=`.
fn flag(arg: &str) -> Option<(String, Option<String>)> {
    let text = arg.strip_prefix("--").filter(|it| !it.is_empty())?;
    let (name, value) = text.split_once('=').map_or((text, None), |it| (it.0, Some(it.1.to_owned())));
    Some((name.to_owned(), value))
}

fn translate(name: &str, value: Option<OsString>, known: &[Spelling], out: &mut Vec<OsString>) -> anyhow::Result<()> {
    // A flag without a value is switched on.
    let said = value.as_ref().map_or_else(|| "true".to_owned(), |it| it.to_string_lossy().to_lowercase());
    for spelling in known {
        match spelling {
            Is(ours) => {
                out.push(ours.into());
                out.extend(value);
            }
            Switch(ours) if said == "true" => out.push(ours.into()),
            Switch(_) if said == "false" => {}
            Switch(ours) => {
                // Ours takes no value, and what follows is for clap to name.
                out.push(ours.into());
                out.extend(value);
            }
            Means(with, flags) if with.is_none_or(|it| it == said) => out.extend(flags.iter().map(OsString::from)),
            Means(..) => continue,
            Anyway => console::warn(&format!("--{name} changes nothing here and is left out")),
            Answer(words) => return Err(user_error(format!("--{name}: {words}"))),
        }
        return Ok(());
    }
    let values: Vec<&str> =
        known.iter().filter_map(|it| if let Means(Some(it), _) = it { Some(*it) } else { None }).collect();
    Err(user_error(format!("--{name} {said}: known values are {}", values.join(", "))))
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
            ("--load_in_4bit --lora_target all", "--quant nf4 --target-modules all-linear"),
            ("--load_in_4bit True --use_rslora true", "--quant nf4 --use-rslora"),
            ("--quantization_bit 8 --stage sft --do_train true", "--quant int8"),
            ("--eval_strategy steps --eval_steps 5", "--eval-steps 5"),
            ("--save_strategy no", "--save-steps 0"),
            ("--assistant_only_loss True", "--loss-on assistant"),
            ("--overwrite_output_dir", "--overwrite"),
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
            ("--early_stopping_patience 3", "--early-stopping-patience: a run takes all its steps"),
            ("--report_to wandb", "metrics.jsonl"),
            ("--eval_strategy epoch", "--eval-steps"),
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
                Is(ours) | Switch(ours) => vec![ours],
                Means(_, flags) => flags.iter().copied().filter(|it| it.starts_with("--")).collect(),
                _ => Vec::new(),
            };
            assert!(ours.iter().all(|it| exists(it)), "{name}: {ours:?}");
        }
    }
}
