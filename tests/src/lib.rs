//! What the end-to-end tests share: the binary, models and data small enough for a run to take a moment, and a folder
//! to work in. The tests themselves are in `tests/`.
//!
//! Files are written byte by byte and results read as a stranger would; of the crates under test only the names and shapes of a
//! model's weights are asked for, which the comparisons with transformers prove.

mod adapter;
mod binary;
mod data;
mod finetune;
mod model;
mod tokenizer;
mod torch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod traced;
mod work;

pub use adapter::Tensors;
pub use binary::{Outcome, halfbyte, run, run_within, skipped};
pub use data::{ROWS, write_jsonl, write_parquet};
pub use finetune::Finetune;
pub use model::{Family, NamedTensor, TinyModel};
pub use tokenizer::{VOCAB, tokenizer_json};
pub use torch::{TorchTensor, write_torch};
pub use work::Work;
