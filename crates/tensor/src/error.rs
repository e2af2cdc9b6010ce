/// The result of an operation on tensors.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with the operands of an operation.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Operands whose shapes do not fit together.
    #[error("{op}: expected {expected}, got shape {got:?}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// What it would have taken.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// An operand of a dtype that the operation does not take.
    #[error("{op}: expected {expected}, got dtype {got}")]
    DType {
        /// The operation that refused.
        op: &'static str,
        /// What it would have taken.
        expected: &'static str,
        /// The dtype that came.
        got: crate::DType,
    },
    /// A value that the operation does not take, such as a token id beyond the vocabulary.
    #[error("{op}: {message}")]
    Invalid {
        /// The operation that refused.
        op: &'static str,
        /// What was expected, what came.
        message: String,
    },
    /// The GPU refused or failed.
    #[error(transparent)]
    Cuda(#[from] halfbyte_cuda::Error),
}

impl Error {
    /// A shape error, for an operation's checks.
    pub fn shape(op: &'static str, expected: impl Into<String>, got: &[usize]) -> Error {
        Error::Shape { op, expected: expected.into(), got: got.to_vec() }
    }

    /// An error about a value.
    pub fn invalid(op: &'static str, message: impl Into<String>) -> Error {
        Error::Invalid { op, message: message.into() }
    }
}
