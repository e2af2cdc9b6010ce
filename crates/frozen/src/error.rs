/// The result of freezing a weight.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a weight cannot be kept in a format.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The codec refused.
    #[error(transparent)]
    Codec(#[from] halfbyte_nf4::Error),
    /// A quantised checkpoint whose parts do not make sense.
    #[error("{0}")]
    Stored(String),
    /// A format that checkpoints do not know.
    #[error("{quant:?} has no place in a bitsandbytes checkpoint")]
    NotStorable {
        /// The format.
        quant: crate::Quant,
    },
    /// A file that could not be read.
    #[error(transparent)]
    Files(#[from] halfbyte_files::Error),
    /// A GPU has no memory left, or fails.
    #[error(transparent)]
    Tensor(#[from] halfbyte_tensor::Error),
    /// A tensor that is not a matrix of floating-point numbers.
    #[error("a frozen matrix is made of a 2-dimensional f32, f16 or bf16 tensor, got shape {shape:?} of {dtype}")]
    NotAMatrix {
        /// The shape that came.
        shape: Vec<usize>,
        /// The dtype that came.
        dtype: halfbyte_tensor::DType,
    },
}
