//! LoRA adapters over any frozen matrix, in PEFT's format.
//!
//! A model is made of [`Linear`] layers and [`Weight`]s, which know their base and their path. An [`Adapter`] is a value
//! beside it: [`attach()`] makes a fresh one for the layers that a [`LoraConfig`] names, by PEFT's own matching rules, and
//! [`save_adapter`] and [`load_adapter`] exchange them with PEFT. Which one a pass uses stands in its [`Context`].

mod adapter;
mod attach;
mod config;
mod config_json;
mod context;
mod error;
mod files;
mod layouts;
mod linear;
mod merge;
mod modules;
mod older;
mod places;
mod prepare;
mod role;
mod shares;
mod stacks;
mod svd;
mod takeover;
mod targets;
mod token_rows;
mod unmatched;
mod variants;
mod weight;

pub use adapter::Adapter;
pub use attach::{AttachReport, attach, attach_dry};
pub use config::{Bias, LoraConfig, TargetModules};
pub use config_json::{ADAPTER_KEYS, AdapterConfig, TokenRows, parse_adapter_config, render_adapter_config};
pub use context::{Context, Routing};
pub use error::{Error, Result};
pub use files::{AdapterFile, load_adapter, read_adapter, save_adapter, stored_rows};
pub use linear::{Base, Linear, Member};
pub use merge::{Merged, check_tied, merge};
pub use modules::{Modules, Tie};
pub use places::adapted;
pub use prepare::Prepare;
pub use role::{Role, Trained};
pub use shares::Share;
pub use takeover::Takeover;
pub use targets::{Selection, layer_index, suggest};
pub use unmatched::refuse_unmatched;
pub use variants::{Dora, EmbeddingLora, Full, Lora, Module, Stacked, Update};
pub use weight::Weight;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
