//! Conversations: what a row says of them, how a model's own template writes them, and which of the text is learned.

mod builtin;
mod cycles;
mod learned;
mod messages;
mod python;
mod tags;
mod template;

pub use builtin::{CHATML, INSTRUCTION};
pub use template::ChatTemplate;

pub(crate) use learned::{Learned, learned};
pub(crate) use messages::{Conversation, Nothing};
