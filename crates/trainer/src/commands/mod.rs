//! The commands that use a model: each a file.

mod answers;
mod chat;
mod data;
mod devices;
mod dialogue;
mod doctor;
mod eval;
mod generate;
mod inspect;
mod lines;
mod merge;
mod model_folder;
mod models;
mod prompts;
mod pull;
mod quantize;
mod session;
mod settings;

pub(crate) use chat::chat;
pub(crate) use data::data;
pub(crate) use devices::devices;
pub(crate) use doctor::doctor;
pub(crate) use eval::eval;
pub(crate) use generate::generate;
pub(crate) use inspect::inspect;
pub(crate) use merge::merge;
pub(crate) use models::models;
pub(crate) use pull::pull;
pub(crate) use quantize::quantize;
