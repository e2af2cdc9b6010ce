//! LoRA adapters over any frozen matrix, in PEFT's format.
//!
//! A model is made of [`Linear`] layers and [`Weight`]s. [`attach()`] puts low-rank adapters on the layers that a
//! [`LoraConfig`] names, by PEFT's own matching rules; [`save_adapter`] and [`load_adapter`] exchange them with PEFT.
//! Any number of named adapters can sit on one base; which one is active is chosen at run time.

mod attach;
mod config;
mod config_json;
mod error;
mod files;
mod linear;
mod modules;
mod role;
mod targets;
mod weight;

pub use attach::{AttachReport, attach};
pub use config::{Bias, LoraConfig, TargetModules};
pub use config_json::{parse_adapter_config, render_adapter_config};
pub use error::{Error, Result};
pub use files::{AdapterFile, load_adapter, read_adapter, save_adapter, write_atomic};
pub use linear::{Base, Context, Linear, LoraLayer};
pub use modules::{Modules, Tie};
pub use role::{Role, Trained};
pub use targets::{Selection, layer_index, suggest};
pub use weight::{EmbeddingLora, Weight};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
