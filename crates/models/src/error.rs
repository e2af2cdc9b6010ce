use std::path::PathBuf;

/// The result of loading or running a model.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a model's folder or its use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// A matrix that could not be stored in the wanted format.
    #[error("{path}: {source}")]
    Freeze {
        /// The module.
        path: String,
        /// Why.
        source: halfbyte_ops::Refusal,
    },
    /// An input that the model cannot take.
    #[error("{0}")]
    Input(String),
    /// A prediction that is none.
    #[error(
        "the model's predictions hold NaN or infinite values: the weights, the adapter or the setting of a norm make them overflow; f32 has a wider range than f16"
    )]
    NotFinite,
    /// A file of tensors that is damaged, or that could not be read or written.
    #[error(transparent)]
    Files(#[from] halfbyte_files::Error),
    /// An op refused its operands.
    #[error(transparent)]
    Autograd(#[from] halfbyte_autograd::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] halfbyte_tensor::Error),
    /// An adapter could not be handled.
    #[error(transparent)]
    Lora(#[from] halfbyte_lora::Error),
}
