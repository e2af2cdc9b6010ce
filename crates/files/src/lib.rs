//! Files of tensors, and files that appear whole or not at all.
//!
//! Everything that Halfbyte reads or writes in the safetensors format, and what it reads of `torch.save`'s, passes through here, so that
//! a header is checked in one place, whoever wrote it, and a file that was cut off is never taken for a whole one. Tensors are bytes here: what
//! they mean is known to those who ask for them.

mod atomic;
mod dtype;
mod error;
mod folder;
mod header;
mod hints;
mod keys;
mod lock;
mod open;
mod reader;
mod sharded;
mod torch;
mod writer;

pub use atomic::{Draft, is_draft, write_atomic};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use folder::{DraftFolder, make_folder, remove_folder, settle, sweep};
pub use header::{Placed, TensorSpec};
pub use hints::{dangling, oddity};
pub use keys::{KeyTable, KeyUse, is_off};
pub use lock::Lock;
pub use open::{append_file, open_file, read_bytes, read_text};
pub use reader::TensorFile;
pub use sharded::{Reading, ShardedFiles};
pub use writer::{ShardedWriter, TensorWriter};

// What stands in files, without a file: for tests that try millions of them.
#[doc(hidden)]
pub use {header::parse as parse_header, sharded::parse_index, torch::parse_pickle};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
