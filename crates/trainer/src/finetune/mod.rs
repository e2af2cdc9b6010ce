//! `halfbyte finetune`: the road from a base model and a data file to an adapter.

mod adapter_flags;
mod args;
mod checkpoint;
mod epochs;
mod fits;
mod optimizer;
mod output;
mod profile;
mod record;
mod run;
mod settings;
mod step;
mod train;

pub use args::{BiasArg, CheckpointingArg, FinetuneArgs, Method, SchedulerArg};
pub use run::run;
pub(crate) use step::flat;

/// The name of the adapter that trains.
const ADAPTER: &str = "default";
