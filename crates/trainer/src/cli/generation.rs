//! The flags of commands that continue texts.
// These comments are the help that clap prints, where ORG/NAME[@REVISION] is no link.
#![allow(rustdoc::broken_intra_doc_links)]

use super::BaseArgs;
use crate::rows::{LayoutArg, TemplateFlags};
use clap::Args;
use std::{ffi::OsString, path::PathBuf};

/// How text is continued.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// At most so many new tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_new_tokens: usize,
    /// 0 takes the most probable token.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample among so many of the most probable tokens; 0 means all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Sample among the most probable tokens that reach this probability together.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Above 1, tokens that occurred become less probable.
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

/// `halfbyte generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// The base model.
    #[command(flatten)]
    pub base: BaseArgs,
    /// An adapter: a folder, a name on the hub, or NAME=FOLDER to call it NAME; may be given more than once.
    #[arg(long, value_name = "[NAME=]ADAPTER")]
    pub adapter: Vec<OsString>,
    /// Which adapter to use, by name; `none` is the base alone [default: each in turn].
    #[arg(long, value_name = "NAME")]
    pub use_adapter: Option<String>,
    /// The text to continue; may be given more than once.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts", conflicts_with = "prompts")]
    pub prompt: Vec<String>,
    /// Rows whose prompts are continued: files (parquet, JSON, CSV, Arrow, or text with one a line), folders, patterns, or data sets on
    /// the hub; answers are not looked at.
    #[arg(long, value_name = "DATA", num_args = 1..)]
    pub prompts: Vec<PathBuf>,
    /// Only these rows of --prompts, such as 0..100.
    #[arg(long, value_name = "FROM..TO", requires = "prompts")]
    pub rows: Option<String>,
    /// Column of the text to continue [default: text].
    #[arg(long, value_name = "NAME", requires = "prompts")]
    pub text_column: Option<String>,
    /// Which columns of --prompts hold what, such as prompt=question; roles are those of finetune.
    #[arg(long, value_name = "ROLE=NAME,..", requires = "prompts")]
    pub columns: Option<String>,
    /// Whether a prompt is continued as it stands (text, completion), is an instruction, laid out as in training (instruction), or a
    /// message, written by the chat template (chat) [default: text; of --prompts by the names of the columns].
    #[arg(long, value_enum)]
    pub layout: Option<LayoutArg>,
    /// Same as --layout chat.
    #[arg(long, conflicts_with = "layout")]
    pub chat: bool,
    /// A system message before the prompt, if that has none; with --chat.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// What writes conversations.
    #[command(flatten)]
    pub template: TemplateFlags,
    /// Sampling.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// So many texts are continued together; when one ends, the next takes its place [default: 32, or as many as there is memory for].
    #[arg(long, value_name = "N", visible_alias = "batch-size")]
    pub per_device_eval_batch_size: Option<usize>,
    /// Print one JSON object a text, with its prompt, instead of the text.
    #[arg(long)]
    pub json: bool,
    /// Append these objects to a file instead, each as soon as it and those before it are done.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Go on where --output ends, which an earlier command with the same prompts and settings has written.
    #[arg(long, requires = "output")]
    pub resume: bool,
    /// Replace an existing --output.
    #[arg(long, requires = "output", conflicts_with = "resume")]
    pub overwrite: bool,
}

/// `halfbyte chat`.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// The base model.
    #[command(flatten)]
    pub base: BaseArgs,
    /// An adapter: a folder, a name on the hub, or NAME=FOLDER to call it NAME; may be given more than once.
    #[arg(long, value_name = "[NAME=]ADAPTER")]
    pub adapter: Vec<OsString>,
    /// What is made of a line: a message, written by the chat template (chat), or text that is appended to what was said and continued
    /// (text) [default: chat if the adapter or the model has a template].
    #[arg(long, value_enum)]
    pub layout: Option<LayoutArg>,
    /// A system message, which stands before the others.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// What writes conversations.
    #[command(flatten)]
    pub template: TemplateFlags,
    /// Sampling.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}
