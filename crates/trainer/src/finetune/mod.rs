//! `halfbyte finetune`: the road from a base model and a data file to an adapter.

mod adapter_flags;
mod args;
mod beginning;
mod config_file;
mod data;
mod data_flags;
mod epochs;
mod fits;
mod listener;
mod output;
mod profile;
mod reads;
mod record;
mod resume;
mod rhythm;
mod run;
mod scheduler;
mod settings;
mod train;
mod used;
mod values;

pub use args::FinetuneArgs;
pub use run::run;
pub(crate) use used::row_line_of;
pub use values::{BiasArg, CheckpointingArg, Method, SchedulerArg};

/// The name of the adapter that trains.
pub(crate) const ADAPTER: &str = "default";
