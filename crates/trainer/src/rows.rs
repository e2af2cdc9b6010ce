//! What a row is, as flags say it: how it is laid out, what writes it, and what of it is learned.

use crate::cli::Switch;
use clap::{Args, ValueEnum};
use halfbyte_data::{Excess, Layout, LossOn};
use serde::{Deserialize, Serialize};

/// What a row of data is, or a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutArg {
    /// Text as it stands.
    Text,
    /// A task, perhaps an input, and an answer.
    Instruction,
    /// A prompt and what follows it, as they stand, or both as messages.
    Completion,
    /// A conversation, or a question and its answer, written by the model's chat template.
    Chat,
}

impl From<LayoutArg> for Layout {
    fn from(from: LayoutArg) -> Layout {
        match from {
            LayoutArg::Text => Layout::Text,
            LayoutArg::Instruction => Layout::Instruction,
            LayoutArg::Completion => Layout::Completion,
            LayoutArg::Chat => Layout::Chat,
        }
    }
}

/// What of a row counts in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOnArg {
    /// What the assistant says, or the answer, with its end.
    Assistant,
    /// The assistant's last turn alone.
    Last,
    /// All that follows the prompt.
    Completion,
    /// Every token.
    All,
}

impl From<LossOnArg> for LossOn {
    fn from(from: LossOnArg) -> LossOn {
        match from {
            LossOnArg::Assistant => LossOn::Assistant,
            LossOnArg::Last => LossOn::Last,
            LossOnArg::Completion => LossOn::Completion,
            LossOnArg::All => LossOn::All,
        }
    }
}

/// What becomes of rows that are too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExcessArg {
    /// Their rest is cut off.
    Truncate,
    /// They are left out.
    Drop,
    /// They become several rows.
    Split,
    /// They are an error.
    Raise,
}

impl From<ExcessArg> for Excess {
    fn from(from: ExcessArg) -> Excess {
        match from {
            ExcessArg::Truncate => Excess::Truncate,
            ExcessArg::Drop => Excess::Drop,
            ExcessArg::Split => Excess::Split,
            ExcessArg::Raise => Excess::Raise,
        }
    }
}

/// What writes conversations as text.
#[derive(Args, Clone, Debug, Default)]
pub struct TemplateFlags {
    /// Writes conversations as text: a Jinja file, `chatml`, or `instruction` [default: the adapter's, else the model's; without
    /// one: instruction].
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub chat_template: Option<String>,
    /// A JSON object of variables for the template, such as '{"enable_thinking": false}'.
    #[arg(long, value_name = "JSON", help_heading = "Data")]
    pub chat_template_kwargs: Option<String>,
}

/// What a row is. `finetune` has the same flags among its own, so that its file of settings can hold them.
#[derive(Args, Clone, Debug, Default)]
pub struct RowFlags {
    /// Column of the text [default: text].
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub text_column: Option<String>,
    /// What a row is: text, instruction, completion or chat [default: by the names of the columns].
    #[arg(long, value_enum, help_heading = "Data")]
    pub layout: Option<LayoutArg>,
    /// Which columns hold what, such as `prompt=question,completion=answer`; roles are text, instruction, input, output,
    /// prompt, completion, messages, system and tools.
    #[arg(long, value_name = "ROLE=NAME,..", help_heading = "Data")]
    pub columns: Option<String>,
    /// What writes conversations.
    #[command(flatten)]
    pub template: TemplateFlags,
    /// What counts in the loss [default: assistant; of text: all].
    #[arg(long, value_enum, help_heading = "Data")]
    pub loss_on: Option<LossOnArg>,
    /// Let prompts count in the loss, too: --loss-on all.
    #[arg(long, help_heading = "Data", conflicts_with = "loss_on")]
    pub train_on_inputs: bool,
    /// Whether rows end with the end-of-text token [default: off for text and chat, on for the others].
    #[arg(long, value_enum, help_heading = "Data")]
    pub append_eos: Option<Switch>,
    /// What becomes of longer rows than --max-length [default: truncate].
    #[arg(long, value_enum, help_heading = "Data")]
    pub excess_length_strategy: Option<ExcessArg>,
    /// Make tokens anew, and keep none for the next time.
    #[arg(long, help_heading = "Data")]
    pub no_token_cache: bool,
}
