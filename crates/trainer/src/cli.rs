//! The command line. Flags carry the names that users of peft and transformers know.
// These comments are the help that clap prints, where ORG/NAME[@REVISION] is no link.
#![allow(rustdoc::broken_intra_doc_links)]

mod generation;

pub use generation::{ChatArgs, GenerateArgs, SamplingArgs};

use crate::{base_record::BaseFlags, plan::Card, rows::RowFlags};
use clap::{Args, Parser, Subcommand, ValueEnum};
use halfbyte_frozen::{Format, Quant};
use halfbyte_tensor::DType;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Unexpected, Visitor},
};
use std::{ffi::OsString, fmt, path::PathBuf, str::FromStr};

const EXIT_CODES: &str = "Exit codes: 0 all is done; 1 something failed on the way, such as a disk or a diverging loss; 2 something that can be put right in what was asked for, such as a flag, a file or the memory that it takes; 130 it was interrupted.";

/// QLoRA fine-tuning of language models, on a CPU or an NVIDIA GPU, without Python.
#[derive(Debug, Parser)]
#[command(name = "halfbyte", version, about, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Worker threads [default: all cores]; results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Say more about what happens.
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter (or a whole model) on a data set.
    Finetune(Box<crate::finetune::FinetuneArgs>),
    /// Continue prompts, with or without adapters.
    Generate(GenerateArgs),
    /// Talk to a model; `/adapter NAME` switches adapters, `/help` lists what else there is.
    Chat(ChatArgs),
    /// Measure loss and perplexity on a data set.
    Eval(EvalArgs),
    /// Show what a training would see of its rows: token by token, what is learned of them, how long they are.
    Data(DataArgs),
    /// Show a model's structure, what an adapter would train, and the memory it needs.
    Inspect(InspectArgs),
    /// Fold an adapter into its base and write a model folder.
    Merge(MergeArgs),
    /// Quantise a model and write it as a bitsandbytes checkpoint, reporting the error of every matrix.
    Quantize(QuantizeArgs),
    /// Turn a settings file of axolotl, LLaMA-Factory or TRL into one for `finetune --config`.
    ImportConfig(crate::import::ImportConfigArgs),
    /// Fetch models, adapters and data sets by name, or bring them up to date.
    Pull(PullArgs),
    /// List what of the hub is in the cache, and which of it can be trained.
    Models(ModelsArgs),
    /// Show what devices there are to compute on.
    Devices,
    /// Show the same and try it: whether the GPU compiles, runs and multiplies, or what is missing.
    Doctor,
}

/// How the base model is loaded.
#[derive(Args, Clone, Debug)]
pub struct BaseArgs {
    /// The base model: a folder in Hugging Face's layout, or a name on its hub, ORG/NAME[@REVISION].
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// How the frozen matrices are kept [default: as stored if the model is quantised, else what --adapter was trained on,
    /// else none].
    #[arg(long, value_enum)]
    pub quant: Option<QuantArg>,
    /// Whether the scales of 4-bit blocks are quantised once more [default: on].
    #[arg(long, value_enum)]
    pub double_quant: Option<Switch>,
    /// Elements that share a scale in the 4-bit formats [default: 64].
    #[arg(long, value_name = "N")]
    pub block_size: Option<usize>,
    /// Type of the activations [default: bf16].
    #[arg(long, value_enum)]
    pub compute_dtype: Option<ComputeArg>,
    /// Where to compute: auto, cpu, cuda (the first GPU) or cuda:N.
    #[arg(long, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
}

impl BaseArgs {
    /// The dtype of the activations.
    pub fn compute(&self) -> DType {
        self.compute_dtype.unwrap_or(ComputeArg::Bf16).dtype()
    }

    pub(crate) fn flags(&self) -> BaseFlags {
        BaseFlags { quant: self.quant, double_quant: self.double_quant, block_size: self.block_size }
    }
}

/// Which rows a command reads.
#[derive(Args, Clone, Debug)]
pub struct ReadArgs {
    /// Files of rows, folders of them, patterns such as 'data/*.jsonl', or data sets on the hub,
    /// ORG/SET[@REVISION][:[CONFIG/]SPLIT]; taken one after the other, or each with a weight as a mixture: a.parquet:0.7
    /// b.jsonl:0.3.
    #[arg(long, value_name = "DATA", num_args = 1.., required = true)]
    pub data: Vec<PathBuf>,
    /// What a row is.
    #[command(flatten)]
    pub row: RowFlags,
    /// Only these rows, such as 0..100.
    #[arg(long, value_name = "FROM..TO")]
    pub rows: Option<String>,
    /// Tokens a row at most.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_length: usize,
}

/// `halfbyte eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// The base model.
    #[command(flatten)]
    pub base: BaseArgs,
    /// An adapter: a folder, a name on the hub, or NAME=FOLDER; may be given more than once, and each is measured on the same base.
    #[arg(long, value_name = "[NAME=]ADAPTER")]
    pub adapter: Vec<OsString>,
    /// What is measured on.
    #[command(flatten)]
    pub read: ReadArgs,
    /// Rows of the longest length a batch; of shorter ones more are taken together.
    #[arg(long, value_name = "N", default_value_t = 8, visible_alias = "batch-size")]
    pub per_device_eval_batch_size: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `halfbyte data`.
#[derive(Args, Debug)]
pub struct DataArgs {
    /// The model whose tokenizer and chat template count: a folder, or a name on the hub, ORG/NAME[@REVISION].
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// What is shown.
    #[command(flatten)]
    pub read: ReadArgs,
    /// How many examples are shown.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub samples: usize,
    /// Print one JSON object an example, with its ids and whether each is learned.
    #[arg(long)]
    pub json: bool,
}

/// `halfbyte inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The base model.
    #[command(flatten)]
    pub base: BaseArgs,
    /// Modules that would get an adapter: names, a regular expression, or all-linear.
    #[arg(long, value_name = "MODULES")]
    pub target_modules: Option<String>,
    /// Parameters that would get one, too, where experts are no modules.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub target_parameters: Vec<String>,
    /// Rank of the adapter.
    #[arg(long, short = 'r', default_value_t = 16)]
    pub rank: usize,
    /// Rows a batch, for the memory plan.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub per_device_train_batch_size: usize,
    /// Tokens a row, for the memory plan.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_length: usize,
    /// Plan for recomputing activations in the backward pass instead of keeping them.
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Plan for recomputing them from inputs that wait in page-locked host memory.
    #[arg(long)]
    pub offload_activations: bool,
    /// Plan for so many MiB of optimizer state in memory, and the rest paged.
    #[arg(long, value_name = "MIB")]
    pub optim_resident_mib: Option<u32>,
    /// Also find the longest row that a card has room for, in each way to keep activations; no GPU is needed.
    #[arg(long, value_name = "CARD", num_args = 0..=1, default_missing_value = "h100", value_parser = Card::ALL.map(|it| it.name))]
    pub longest_row: Option<String>,
    /// Also show what each op of a step costs on a card, by operations, bytes and launches; no GPU is needed.
    #[arg(long, value_name = "CARD", num_args = 0..=1, default_missing_value = "h100", value_parser = Card::ALL.map(|it| it.name))]
    pub roofline: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `halfbyte merge`.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The base model: a folder, or a name on the hub, ORG/NAME[@REVISION].
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// The adapter's folder, or its name on the hub.
    #[arg(long, value_name = "ADAPTER")]
    pub adapter: PathBuf,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Merge onto the base as it was quantised in training [default: what is written beside the adapter].
    #[arg(long, value_enum)]
    pub quant: Option<QuantArg>,
    /// Whether the scales of 4-bit blocks are quantised once more.
    #[arg(long, value_enum)]
    pub double_quant: Option<Switch>,
    /// Elements that share a scale in the 4-bit formats.
    #[arg(long, value_name = "N")]
    pub block_size: Option<usize>,
    /// Type of the written weights [default: bf16].
    #[arg(long, value_enum, default_value_t = ComputeArg::Bf16)]
    pub dtype: ComputeArg,
    /// Most bytes in one weights file; a larger model is split into several, with an index beside them.
    #[arg(long, value_name = "BYTES", default_value_t = 5_000_000_000)]
    pub max_shard_size: u64,
    /// A parquet or JSON Lines file whose first rows the merged model is compared on [default: a text of Halfbyte's].
    #[arg(long, value_name = "FILE")]
    pub check_data: Option<PathBuf>,
    /// Write the model even if its predictions are not those of base + adapter.
    #[arg(long)]
    pub force: bool,
    /// Replace an existing folder.
    #[arg(long)]
    pub overwrite: bool,
}

/// `halfbyte quantize`.
#[derive(Args, Debug)]
pub struct QuantizeArgs {
    /// The model: a folder, or a name on the hub, ORG/NAME[@REVISION].
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// The folder to write; without it only the report is made.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// The format.
    #[arg(long, value_enum, default_value_t = QuantArg::Nf4)]
    pub quant: QuantArg,
    /// Whether the scales of 4-bit blocks are quantised once more.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub double_quant: Switch,
    /// Elements that share a scale in the 4-bit formats.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub block_size: usize,
    /// Replace an existing folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `halfbyte pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// Models and adapters on the hub, ORG/NAME[@REVISION].
    #[arg(value_name = "NAME")]
    pub names: Vec<OsString>,
    /// A data set, ORG/SET[@REVISION][:[CONFIG/]SPLIT]; may be given more than once.
    #[arg(long, value_name = "NAME")]
    pub data: Vec<OsString>,
}

/// `halfbyte models`.
#[derive(Args, Debug)]
pub struct ModelsArgs {
    /// Print one JSON array.
    #[arg(long)]
    pub json: bool,
}

/// How frozen matrices are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantArg {
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit floating point.
    Fp4,
    /// 4-bit integers.
    Int4,
    /// 8-bit integers, a scale a row.
    Int8,
    /// As loaded.
    None,
}

impl QuantArg {
    /// The storage format.
    pub fn format(self, double_quant: bool, block_size: usize) -> Format {
        let quant = match self {
            QuantArg::Nf4 => Quant::Nf4,
            QuantArg::Fp4 => Quant::Fp4,
            QuantArg::Int4 => Quant::Int4,
            QuantArg::Int8 => Quant::Int8,
            QuantArg::None => Quant::None,
        };
        Format { quant, block_size, double_quant }
    }
}

/// Something that is on or off; `true` and `false` mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    #[value(alias = "true")]
    On,
    /// Off.
    #[value(alias = "false")]
    Off,
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Switch, D::Error> {
        from.deserialize_any(SwitchVisitor)
    }
}

/// Reads `"on"`, `"true"` and TOML's own `true` alike.
struct SwitchVisitor;

impl Visitor<'_> for SwitchVisitor {
    type Value = Switch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"on\", \"off\", true or false")
    }

    fn visit_bool<E>(self, on: bool) -> Result<Switch, E> {
        Ok(if on { Switch::On } else { Switch::Off })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Switch, E> {
        Switch::from_str(text, false).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeArg {
    /// 16 bits with f32's range.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Single precision.
    F32,
}

impl ComputeArg {
    /// The dtype.
    pub fn dtype(self) -> DType {
        match self {
            ComputeArg::Bf16 => DType::Bf16,
            ComputeArg::F16 => DType::F16,
            ComputeArg::F32 => DType::F32,
        }
    }
}

/// Where to compute: `auto`, `cpu`, `cuda` (the first GPU) or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceArg {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number in the driver's order.
    Cuda(u32),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceArg, String> {
        let number = |text: &str| text.parse().ok().map(DeviceArg::Cuda);
        let found = match text {
            "auto" => Some(DeviceArg::Auto),
            "cpu" => Some(DeviceArg::Cpu),
            "cuda" => Some(DeviceArg::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number),
        };
        found.ok_or_else(|| format!("`{text}` is no device; expected auto, cpu, cuda or cuda:N"))
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceArg::Auto => f.write_str("auto"),
            DeviceArg::Cpu => f.write_str("cpu"),
            DeviceArg::Cuda(0) => f.write_str("cuda"),
            DeviceArg::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl TryFrom<String> for DeviceArg {
    type Error = String;

    fn try_from(text: String) -> Result<DeviceArg, String> {
        text.parse()
    }
}

impl From<DeviceArg> for String {
    fn from(device: DeviceArg) -> String {
        device.to_string()
    }
}
