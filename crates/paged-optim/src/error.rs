//! What can go wrong, said so that a user can act on it.

use std::{io, path::PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything a caller, a disk or a checkpoint can cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is outside its range.
    #[error("optimizer setting {name} is {got}: expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        got: String,
        /// What would be valid.
        expected: &'static str,
    },
    /// Two parameters share a name, so that a checkpoint could not tell them apart.
    #[error("parameter {name:?} is registered twice with the optimizer: names must be unique")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A step or a checkpoint has another number of parameters than the optimizer.
    #[error("{what} has {got} parameters, the optimizer was made for {expected}: pass all of them, in that order")]
    ParamCount {
        /// "the step" or "the checkpoint".
        what: &'static str,
        /// Registered parameters.
        expected: usize,
        /// Parameters that came.
        got: usize,
    },
    /// A slice does not have its parameter's length.
    #[error("{what} of parameter {name:?} has {got} elements, expected {expected}")]
    ParamLength {
        /// "value", "gradient", "first moment" or "second moment".
        what: &'static str,
        /// The parameter.
        name: String,
        /// Registered length.
        expected: usize,
        /// Length that came.
        got: usize,
    },
    /// A checkpoint's parameter stands where the optimizer has another one.
    #[error(
        "the checkpoint's parameter {index} is {got:?}, expected {expected:?}: it belongs to another model or setup"
    )]
    ParamName {
        /// Position in the order of registration.
        index: usize,
        /// Registered name.
        expected: String,
        /// Name in the checkpoint.
        got: String,
    },
    /// The spill file failed: full disk, missing folder, no permission.
    #[error("spill file in {}: cannot {action}: {source}; free some space, choose another spill_dir or raise resident_bytes", dir.display())]
    Spill {
        /// The folder that holds the file.
        dir: PathBuf,
        /// What was tried, with its size.
        action: String,
        /// The cause.
        source: io::Error,
    },
    /// The caller's reader or writer of a checkpoint failed.
    #[error("optimizer state, {part} of parameter {name:?} at element {offset}: {source}")]
    Transfer {
        /// The parameter.
        name: String,
        /// Which of its tensors.
        part: crate::StatePart,
        /// First element of the failed piece.
        offset: usize,
        /// The cause.
        source: io::Error,
    },
    /// The state was asked for in f32 but is kept in 8 bits.
    #[error("the state of parameter {name:?} is kept in 8 bits: save it with visit_state and load it with restore")]
    NotF32 {
        /// The parameter.
        name: String,
    },
    /// The GPU refused or failed.
    #[error(transparent)]
    Cuda(#[from] halfbyte_cuda::Error),
    /// An earlier failure left the state half changed.
    #[error("the optimizer state is incomplete since an earlier failure ({reason}): restore it from a checkpoint")]
    Broken {
        /// The earlier failure.
        reason: String,
    },
}
