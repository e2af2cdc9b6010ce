//! `halfbyte finetune`: the road from a base model and a data file to an adapter.

mod adapter_flags;
mod args;
mod beginning;
mod epochs;
mod fits;
mod output;
mod profile;
mod record;
mod resume;
mod run;
mod settings;
mod train;
mod used;

pub use args::{BiasArg, CheckpointingArg, FinetuneArgs, Method, SchedulerArg};
pub(crate) use fits::RUNTIME_BYTES;
pub use run::run;

/// The name of the adapter that trains.
pub(crate) const ADAPTER: &str = "default";
