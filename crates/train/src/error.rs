/// The result of training.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an observer, or whoever writes files beside a checkpoint, may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong while training.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step's loss that is no number; nothing has changed.
    #[error("the loss is {0}")]
    Loss(f32),
    /// A step's gradient whose norm is no number, and no loss scale to blame; nothing has changed.
    #[error("the norm of the gradient is {0}")]
    GradientNorm(f32),
    /// A step after which something is no number any more; it is not kept.
    #[error("{name} holds NaN or infinite values after this step")]
    NotFinite {
        /// The parameter, or a part of the optimizer's state for it.
        name: String,
    },
    /// A step after which the loss of what it was taken on is no number; it is not kept.
    #[error("after this step the loss of its own batch is {0}")]
    Diverged(f32),
    /// Examples whose loss is no number.
    #[error(
        "the loss of {examples} held-out examples is {loss}: the weights, the adapter or the setting of a norm make it overflow; f32 has a wider range than f16"
    )]
    Evaluation {
        /// What was found.
        loss: f64,
        /// How many examples were measured.
        examples: usize,
    },
    /// A parameter that the loss does not depend on.
    #[error("{0} got no gradient: it would never be trained")]
    NoGradient(String),
    /// A step whose batches count for nothing.
    #[error("no token of the step's batches is trained: there is nothing to take a mean of")]
    NothingCounts,
    /// A step that failed.
    #[error("step {step}: {source}")]
    Step {
        /// Which, counted from 1.
        step: usize,
        /// Why.
        source: Box<Error>,
    },
    /// A run whose end nothing says.
    #[error("how many batches a pass over the rows has is not known, so the number of steps must be given")]
    Endless,
    /// A run that is to go on, but is shorter than what was done.
    #[error("the run has {total} steps, but its checkpoint is of step {step}")]
    Ended {
        /// Where its checkpoint stands.
        step: usize,
        /// Its length.
        total: usize,
    },
    /// A state that is not one of this run.
    #[error("the state of step {step} does not belong to this run: {message}")]
    State {
        /// Where it stands.
        step: usize,
        /// What was expected and what came.
        message: String,
    },
    /// A run that changed nothing.
    #[error("no trainable tensor changed, at a learning rate of {learning_rate}: the result would be the start")]
    NothingChanged {
        /// The largest rate of the run.
        learning_rate: f64,
    },
    /// Parameters without a gradient in the whole run.
    #[error(
        "{count} of {of} trainable tensors never had a gradient other than zero, {first} among them: they would be untrained"
    )]
    Untrained {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
        /// The name of one.
        first: String,
    },
    /// A file that could not be read or written, or whose contents do not make sense.
    #[error(transparent)]
    Files(#[from] halfbyte_files::Error),
    /// The other ranks could not be reached.
    #[error("rank {rank} of {world}: {message}")]
    Ranks {
        /// Who noticed.
        rank: usize,
        /// How many there are.
        world: usize,
        /// What happened.
        message: String,
    },
    /// An observer failed, or whoever writes files beside a checkpoint.
    #[error(transparent)]
    Caller(BoxError),
    /// The data set cannot be cut as asked.
    #[error(transparent)]
    Data(#[from] halfbyte_data::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] halfbyte_models::Error),
    /// An op or a backward pass failed.
    #[error(transparent)]
    Autograd(#[from] halfbyte_autograd::Error),
    /// A tensor could not be moved.
    #[error(transparent)]
    Tensor(#[from] halfbyte_tensor::Error),
    /// The optimizer refused or failed.
    #[error(transparent)]
    Optim(#[from] halfbyte_paged_optim::Error),
}

impl Error {
    /// What a GPU said, behind the errors of models, ops and optimizer, which pass it on as their own.
    pub fn gpu(&self) -> Option<&halfbyte_cuda::Error> {
        use halfbyte_autograd::Error::Tensor as OpTensor;
        use halfbyte_models::Error as Model;
        use halfbyte_tensor::Error::Cuda;
        match self {
            Error::Step { source, .. } => source.gpu(),
            Error::Model(Model::Autograd(OpTensor(Cuda(found))) | Model::Tensor(Cuda(found)))
            | Error::Autograd(OpTensor(Cuda(found)))
            | Error::Tensor(Cuda(found))
            | Error::Optim(halfbyte_paged_optim::Error::Cuda(found)) => Some(found),
            _ => None,
        }
    }
}
