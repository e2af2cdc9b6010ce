use std::path::PathBuf;

/// The result of an operation on adapters.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with an adapter, its configuration or its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that no adapter can have.
    #[error("{0}")]
    Config(String),
    /// Target modules that exist nowhere in the model.
    #[error("target_modules {asked} match no linear layer of this model; {hint}. Its linear layers are named: {}", available.join(", "))]
    NoTarget {
        /// What was asked for.
        asked: String,
        /// What to ask for instead.
        hint: String,
        /// The names that exist.
        available: Vec<String>,
    },
    /// A file that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file whose contents do not make sense.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected, what came, what to do.
        message: String,
    },
    /// An adapter that is not worth keeping.
    #[error("{name} holds NaN or infinite values, so the adapter was not saved")]
    NotFinite {
        /// The tensor, as files name it.
        name: String,
    },
    /// A file of tensors that is damaged, or that could not be read or written.
    #[error(transparent)]
    Files(#[from] halfbyte_files::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Autograd(#[from] halfbyte_autograd::Error),
}
