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
mod targets;
mod weight;

pub use attach::{AttachReport, attach};
pub use config::{Bias, LoraConfig, TargetModules};
pub use config_json::{parse_adapter_config, render_adapter_config};
pub use error::{Error, Result};
pub use files::{AdapterFile, load_adapter, read_adapter, save_adapter, write_atomic};
pub use linear::{Base, Context, Linear, LoraLayer};
pub use targets::{Selection, layer_index, suggest};
pub use weight::Weight;

/// The parts of a model that adapters deal with, in the model's order.
#[derive(Default)]
pub struct Modules<'a> {
    /// The linear layers, the output head (if it is not tied) last.
    pub linears: Vec<&'a mut Linear>,
    /// Embeddings and the weights and biases of norms.
    pub weights: Vec<&'a mut Weight>,
    /// Path of the output head, which `all-linear` leaves alone.
    pub head: Option<String>,
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
