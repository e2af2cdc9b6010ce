//! The flags of `halfbyte finetune`, each of them also a key of `--config FILE.toml`.
// These comments are the help that clap prints, where ORG/NAME[@REVISION] is no link.
#![allow(rustdoc::broken_intra_doc_links)]

use super::{
    config_file::{joined, json, one_or_many},
    rhythm::Cadence,
    values::{BiasArg, CheckpointingArg, Method, OptimArg, SchedulerArg},
};
use crate::{
    cli::{ComputeArg, DeviceArg, QuantArg, Switch},
    rows::{ExcessArg, LayoutArg, LossOnArg, RowFlags, TemplateFlags},
};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `halfbyte finetune`: all flags are optional here, so that a file can give them.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FinetuneArgs {
    /// A TOML file with any of these flags as keys (`lora_alpha = 16`); flags on the command line win.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// `threads` of the file; the command line has it among the flags of all commands.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,

    /// The base model: a folder in Hugging Face's layout, or a name on its hub, ORG/NAME[@REVISION].
    #[arg(long, value_name = "MODEL", help_heading = "Files")]
    pub model: Option<PathBuf>,
    /// Rows to train on: files (parquet, JSON, CSV, Arrow, text), folders of them, patterns such as 'data/*.jsonl', or
    /// data sets on the hub, ORG/SET[@REVISION][:[CONFIG/]SPLIT]; taken one after the other, or each with a weight as a mixture:
    /// a.parquet:0.7 b.jsonl:0.3.
    #[arg(long, value_name = "DATA", num_args = 1.., help_heading = "Files")]
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Held-out rows: their loss is measured before and after.
    #[arg(long, value_name = "DATA", num_args = 1.., help_heading = "Files")]
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub eval_data: Vec<PathBuf>,
    /// Folder for the adapter, logs and checkpoints.
    #[arg(long, value_name = "DIR", visible_alias = "output-dir", help_heading = "Files")]
    #[serde(alias = "output_dir")]
    pub output: Option<PathBuf>,
    /// Replace what an earlier run left in the output folder.
    #[arg(long, help_heading = "Files")]
    #[serde(skip)]
    pub overwrite: bool,
    /// Go on from the newest checkpoint in the output folder.
    #[arg(long, visible_alias = "resume-from-checkpoint", help_heading = "Files")]
    #[serde(skip)]
    pub resume: bool,
    /// Start from this adapter instead of a fresh one.
    #[arg(long, value_name = "ADAPTER", help_heading = "Files")]
    pub init_adapter: Option<PathBuf>,

    /// Column of the text [default: text].
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub text_column: Option<String>,
    /// What a row is: text, instruction, completion or chat [default: by the names of the columns].
    #[arg(long, value_enum, help_heading = "Data")]
    pub layout: Option<LayoutArg>,
    /// Which columns hold what, such as `prompt=question,completion=answer`; roles are text, instruction, input, output,
    /// prompt, completion, messages, system and tools.
    #[arg(long, value_name = "ROLE=NAME,..", help_heading = "Data")]
    #[serde(deserialize_with = "joined")]
    pub columns: Option<String>,
    /// Writes conversations as text: a Jinja file, `chatml`, or `instruction` [default: the model's; without one: instruction].
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub chat_template: Option<String>,
    /// A JSON object of variables for the template, such as '{"enable_thinking": false}'.
    #[arg(long, value_name = "JSON", help_heading = "Data")]
    pub chat_template_kwargs: Option<String>,
    /// Only these rows of --data, such as 0..1000.
    #[arg(long, value_name = "FROM..TO", help_heading = "Data")]
    pub rows: Option<String>,
    /// Only these rows of --eval-data.
    #[arg(long, value_name = "FROM..TO", help_heading = "Data")]
    pub eval_rows: Option<String>,
    /// Keep these of the rows from training and measure on them, instead of --eval-data: a share, such as 0.05, or a number of them.
    /// What a row says decides, so it stays on its side whatever rows are added.
    #[arg(long, value_name = "X", help_heading = "Data")]
    pub eval_split: Option<f64>,
    /// Make tokens anew, and keep none for the next time.
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "is_false")]
    pub no_token_cache: bool,
    /// Read rows as training goes, instead of all before: for data larger than memory. Needs --max-steps, unless the files are parquet.
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "is_false")]
    pub streaming: bool,
    /// With --streaming, how many rows are read and shuffled together [default: 10000].
    #[arg(long, value_name = "N", visible_alias = "buffer-size", help_heading = "Data")]
    #[serde(alias = "buffer_size")]
    pub shuffle_buffer: Option<usize>,
    /// Tokens a row at most [default: 512].
    #[arg(long, value_name = "N", visible_alias = "max-seq-length", help_heading = "Data")]
    #[serde(alias = "max_seq_length")]
    pub max_length: Option<usize>,
    /// What becomes of longer rows [default: truncate].
    #[arg(long, value_enum, help_heading = "Data")]
    pub excess_length_strategy: Option<ExcessArg>,
    /// The share of rows that may teach nothing, or not what they should: without a trained token, with a doubled beginning, with an
    /// answer that is not closed. With more of them the run is refused [default: 0.1].
    #[arg(long, value_name = "X", help_heading = "Data")]
    pub max_doubtful_rows: Option<f64>,
    /// Whether rows end with the end-of-text token [default: off for text and chat, on for the others].
    #[arg(long, value_enum, ignore_case = true, help_heading = "Data")]
    pub append_eos: Option<Switch>,
    /// What counts in the loss [default: assistant; of text: all].
    #[arg(long, value_enum, help_heading = "Data")]
    pub loss_on: Option<LossOnArg>,
    /// Let prompts count in the loss, too: --loss-on all.
    #[arg(long, help_heading = "Data", conflicts_with = "loss_on")]
    #[serde(skip_serializing_if = "is_false")]
    pub train_on_inputs: bool,
    /// Take rows in file order.
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "is_false")]
    pub no_shuffle: bool,
    /// Put several rows of the data, one after the other, into each row of a batch, up to --max-length tokens. They do not
    /// see each other and none is cut; a step then holds more tokens, and an epoch has fewer steps [default: off].
    #[arg(long, value_enum, ignore_case = true, num_args = 0..=1, default_missing_value = "on", help_heading = "Data")]
    pub packing: Option<Switch>,
    /// Leave out the last, smaller batch of an epoch.
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "is_false")]
    pub drop_last: bool,
    /// Texts that held-out rows end in, such as `positive,negative`: accuracy is measured before and after.
    #[arg(long, value_name = "A,B", help_heading = "Data")]
    #[serde(deserialize_with = "joined")]
    pub eval_labels: Option<String>,
    /// How many held-out rows are shown with the model's answers, before and after [default: 0].
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub samples: Option<usize>,

    /// What trains [default: qlora, or lora with --quant none].
    #[arg(long, value_enum, help_heading = "Model")]
    pub method: Option<Method>,
    /// How the frozen matrices are kept [default: nf4 for qlora, else none].
    #[arg(long, value_enum, help_heading = "Model")]
    pub quant: Option<QuantArg>,
    /// Whether the scales of 4-bit blocks are quantised once more [default: on].
    #[arg(long, value_enum, ignore_case = true, help_heading = "Model")]
    pub double_quant: Option<Switch>,
    /// Elements that share a scale in the 4-bit formats [default: 64].
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub block_size: Option<usize>,
    /// Type of the activations [default: bf16].
    #[arg(long, value_enum, help_heading = "Model")]
    pub compute_dtype: Option<ComputeArg>,
    /// Same as --compute-dtype bf16.
    #[arg(long, help_heading = "Model", conflicts_with_all = ["fp16", "compute_dtype"])]
    #[serde(skip_serializing_if = "is_false")]
    pub bf16: bool,
    /// Same as --compute-dtype f16.
    #[arg(long, help_heading = "Model", conflicts_with = "compute_dtype")]
    #[serde(skip_serializing_if = "is_false")]
    pub fp16: bool,
    /// Recompute blocks in the backward pass instead of keeping them [default: auto].
    #[arg(long, value_enum, ignore_case = true, num_args = 0..=1, default_missing_value = "on", help_heading = "Model")]
    pub gradient_checkpointing: Option<CheckpointingArg>,
    /// Keep the inputs of recomputed blocks in page-locked host memory instead of the GPU's [default: auto].
    #[arg(long, value_enum, ignore_case = true, num_args = 0..=1, default_missing_value = "on", help_heading = "Model")]
    pub offload_activations: Option<CheckpointingArg>,
    /// Where to compute: auto, cpu, cuda (the first GPU) or cuda:N [default: auto].
    #[arg(long, help_heading = "Model")]
    pub device: Option<DeviceArg>,

    /// Rank of the adapter [default: 16].
    #[arg(long, short = 'r', visible_alias = "lora-r", value_name = "N", help_heading = "Adapter")]
    #[serde(alias = "lora_r")]
    pub rank: Option<usize>,
    /// The adapter's update is scaled by lora_alpha / rank [default: 16].
    #[arg(long, value_name = "X", help_heading = "Adapter")]
    pub lora_alpha: Option<f32>,
    /// Probability of dropping an element of the adapter's input [default: 0].
    #[arg(long, value_name = "P", help_heading = "Adapter")]
    pub lora_dropout: Option<f32>,
    /// Which linear layers get an adapter: names (`q_proj,v_proj`), a regular expression, or all-linear [default: all-linear].
    #[arg(long, value_name = "MODULES", help_heading = "Adapter")]
    #[serde(deserialize_with = "joined")]
    pub target_modules: Option<String>,
    /// Parameters that get one, too, where experts are no modules: names such as `mlp.experts.gate_up_proj`.
    #[arg(long, value_name = "NAMES", help_heading = "Adapter")]
    #[serde(deserialize_with = "joined")]
    pub target_parameters: Option<String>,
    /// Which of them are left out again.
    #[arg(long, value_name = "MODULES", help_heading = "Adapter")]
    #[serde(deserialize_with = "joined")]
    pub exclude_modules: Option<String>,
    /// Modules that train in full and are saved with the adapter.
    #[arg(long, value_name = "NAMES", help_heading = "Adapter")]
    #[serde(deserialize_with = "joined")]
    pub modules_to_save: Option<String>,
    /// Which biases train along [default: none].
    #[arg(long, value_enum, help_heading = "Adapter")]
    pub bias: Option<BiasArg>,
    /// Scale by lora_alpha / sqrt(rank).
    #[arg(long, help_heading = "Adapter")]
    #[serde(skip_serializing_if = "is_false")]
    pub use_rslora: bool,
    /// Train the magnitude of every output channel beside the update (DoRA); slower, and often better at low ranks.
    #[arg(long, help_heading = "Adapter")]
    #[serde(skip_serializing_if = "is_false")]
    pub use_dora: bool,
    /// How A and B begin: default, or with the principal components of each matrix, which is kept without them: pissa (exact) or
    /// pissa_niter_N (found in N rounds, much faster; 16 is plenty). Saved as a plain adapter of twice the rank [default: default].
    #[arg(long, value_name = "HOW", help_heading = "Adapter")]
    pub init_lora_weights: Option<String>,
    /// Ranks that differ, such as `q_proj=4,down_proj=32`.
    #[arg(long, value_name = "NAME=N,..", help_heading = "Adapter")]
    #[serde(deserialize_with = "joined")]
    pub rank_pattern: Option<String>,
    /// Alphas that differ.
    #[arg(long, value_name = "NAME=X,..", help_heading = "Adapter")]
    #[serde(deserialize_with = "joined")]
    pub alpha_pattern: Option<String>,

    /// Rows a batch; with --packing on, packed rows [default: 4].
    #[arg(long, value_name = "N", visible_alias = "batch-size", help_heading = "Training")]
    #[serde(alias = "batch_size")]
    pub per_device_train_batch_size: Option<usize>,
    /// Batches a step [default: 1].
    #[arg(long, value_name = "N", visible_alias = "grad-accum", help_heading = "Training")]
    #[serde(alias = "grad_accum")]
    pub gradient_accumulation_steps: Option<usize>,
    /// Passes over the data [default: 1].
    #[arg(long, value_name = "X", visible_alias = "epochs", help_heading = "Training")]
    #[serde(alias = "epochs")]
    pub num_train_epochs: Option<f64>,
    /// Steps, whatever the number of epochs.
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub max_steps: Option<usize>,
    /// Largest learning rate [default: 2e-4].
    #[arg(long, value_name = "X", visible_alias = "lr", help_heading = "Training")]
    #[serde(alias = "lr")]
    pub learning_rate: Option<f64>,
    /// How the learning rate falls [default: linear].
    #[arg(long, value_enum, help_heading = "Training")]
    pub lr_scheduler_type: Option<SchedulerArg>,
    /// A JSON object of arguments for it, as in transformers, such as '{"num_cycles": 3}'.
    #[arg(long, value_name = "JSON", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json")]
    pub lr_scheduler_kwargs: Option<String>,
    /// Steps over which it rises first, or their share of the run [default: 0].
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup_steps: Option<Cadence>,
    /// Steps over which it rises first, as a share of all steps.
    #[arg(long, value_name = "X", conflicts_with = "warmup_steps", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay [default: 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// The optimizer, by the form of its state [default: adamw_torch].
    #[arg(long, value_name = "OPTIM", help_heading = "Training")]
    pub optim: Option<OptimArg>,
    /// AdamW's decay of the first moment [default: 0.9].
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub adam_beta1: Option<f64>,
    /// AdamW's decay of the second moment [default: 0.999].
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub adam_beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8].
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub adam_epsilon: Option<f64>,
    /// Gradients are scaled down to this norm; 0 leaves them [default: 1].
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub max_grad_norm: Option<f32>,
    /// Optimizer state kept in memory, in MiB; the rest is paged to a file in the output folder [default: all].
    #[arg(long, value_name = "MIB", help_heading = "Training")]
    pub optim_resident_mib: Option<f64>,
    /// End the run when so many evaluations in a row brought no lower held-out loss; the best state is then the result.
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<usize>,
    /// By how much the loss has to be lower to end that wait [default: 0].
    #[arg(long, value_name = "X", requires = "early_stopping_patience", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_threshold: Option<f64>,
    /// Save and end after so many minutes, with what it takes to go on.
    #[arg(long, value_name = "X", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_minutes: Option<f64>,
    /// Seed of the adapter's first values, of the order of the rows, and of dropout [default: 42].
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<u64>,

    /// A line in metrics.jsonl every so many steps, at a share of the run (0.01), or so many times an epoch (20/epoch)
    /// [default: 1].
    #[arg(long, value_name = "WHEN", help_heading = "Logging")]
    pub logging_steps: Option<Cadence>,
    /// A line for the first step, too.
    #[arg(long, help_heading = "Logging")]
    #[serde(skip_serializing_if = "is_false")]
    pub logging_first_step: bool,
    /// Type of the weights that --method full saves; an adapter is always saved in f32 [default: bf16].
    #[arg(long, value_enum, help_heading = "Logging")]
    pub save_dtype: Option<ComputeArg>,
    /// A checkpoint every so many steps, at a share of the run, or so many times an epoch (1/epoch, or epoch); 0 means none before
    /// the end [default: 500].
    #[arg(long, value_name = "WHEN", help_heading = "Logging")]
    pub save_steps: Option<Cadence>,
    /// Checkpoints kept, that of the best state among them; older ones are removed [default: 2].
    #[arg(long, value_name = "N", help_heading = "Logging")]
    pub save_total_limit: Option<usize>,
    /// The held-out loss every so many steps, at a share of the run, or so many times an epoch; 0 means only before and after
    /// [default: 0].
    #[arg(long, value_name = "WHEN", help_heading = "Logging")]
    pub eval_steps: Option<Cadence>,
    /// Save the state whenever its held-out loss is the lowest so far, and end with the best instead of the last.
    #[arg(long, help_heading = "Logging")]
    #[serde(skip_serializing_if = "is_false")]
    pub load_best_model_at_end: bool,
    /// Measure where the time of the steps goes: a table at the end, and profile.json.
    #[arg(long, help_heading = "Logging")]
    #[serde(skip_serializing_if = "is_false")]
    pub profile: bool,
    /// Do not measure the held-out loss before the first step.
    #[arg(long, help_heading = "Logging")]
    #[serde(skip_serializing_if = "is_false")]
    pub no_eval_before: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl FinetuneArgs {
    /// Those of the flags that say what a row is.
    pub(crate) fn row_flags(&self) -> RowFlags {
        RowFlags {
            text_column: self.text_column.clone(),
            layout: self.layout,
            columns: self.columns.clone(),
            template: TemplateFlags {
                chat_template: self.chat_template.clone(),
                chat_template_kwargs: self.chat_template_kwargs.clone(),
            },
            loss_on: self.loss_on,
            train_on_inputs: self.train_on_inputs,
            append_eos: self.append_eos,
            excess_length_strategy: self.excess_length_strategy,
            no_token_cache: self.no_token_cache,
        }
    }
}
