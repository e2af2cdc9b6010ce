/// The result of recording or running an op.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while recording or running the tape.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// An op refused its operands.
    #[error(transparent)]
    Tensor(#[from] halfbyte_tensor::Error),
    /// Trainable tensors were used, but the loss does not depend on them.
    #[error("no gradient reached {}: the loss does not depend on what the forward computed from it", names.join(", "))]
    MissingGradient {
        /// The names of the trainable tensors.
        names: Vec<String>,
    },
    /// Nothing trainable was used.
    #[error("the loss does not depend on any trainable tensor: attach an adapter, or train with --method full")]
    NothingTrains,
}
