use crate::{KvCache, ModelConfig, Result};
use halfbyte_autograd::{Tape, Var};
use halfbyte_lora::{Base, Context, Linear, Modules, Tie, Weight};
use halfbyte_ops::{FrozenMatrix, Ids, Layout, cross_entropy::Head};
use halfbyte_tensor::{DType, Tensor};

/// A batch of token ids: sequences one after the other, without padding.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// One id a row of the layout.
    pub ids: &'a Ids,
    /// Where sequences begin and end.
    pub layout: &'a Layout,
    /// Dtype of the activations: f32, bf16 or f16.
    pub compute: DType,
    /// Whether blocks are recomputed in the backward pass instead of being kept.
    pub checkpointing: bool,
}

/// What the published files call the output head, and those that tie it by name.
pub(crate) const HEAD: &str = "lm_head";

/// A head that is the embedding.
pub(crate) fn tie(embedding: &Weight) -> Tie {
    Tie { embedding: embedding.module().to_owned(), head: HEAD.to_owned() }
}

/// A causal language model: its forward pass, and access to its parts.
pub trait Model: Send + Sync {
    /// The facts of its `config.json`.
    fn config(&self) -> &ModelConfig;

    /// The normalised hidden states `(tokens, hidden_size)`.
    fn hidden<'m>(&'m self, tape: &Tape<'m>, input: &Input<'_>, ctx: &Context) -> Result<Var>;

    /// The hidden states of new tokens `(ids.len(), hidden_size)`, whose keys and values join the cache.
    fn extend(&self, ids: &[u32], cache: &mut KvCache, ctx: &Context) -> Result<Tensor>;

    /// The output head.
    fn head<'m>(&'m self, tape: &Tape<'m>, ctx: &Context) -> OutputHead<'m>;

    /// Its parts, in the order of the checkpoint.
    fn parts(&self) -> (Vec<&Linear>, Vec<&Weight>);

    /// The same, for adapters.
    fn modules(&mut self) -> Modules<'_>;
}

/// The matrix that turns hidden states into logits.
pub enum OutputHead<'m> {
    /// A frozen matrix of its own.
    Frozen(&'m dyn FrozenMatrix),
    /// The embedding, or a matrix that trains: `(vocab_size, hidden_size)`.
    Var(Var),
}

impl<'m> OutputHead<'m> {
    /// The head of a model: the embedding if `linear` is none.
    pub(crate) fn of(tape: &Tape<'m>, linear: Option<&'m Linear>, embedding: &Weight, ctx: &Context) -> OutputHead<'m> {
        let Some(linear) = linear else { return OutputHead::Var(embedding.head_var(tape, ctx)) };
        match (linear.trained_matrix(ctx), linear.base()) {
            (Some(param), _) | (None, Base::Trainable(param)) => OutputHead::Var(tape.param(param)),
            (None, Base::Frozen(matrix)) => OutputHead::Frozen(matrix.as_ref()),
        }
    }

    /// For the ops.
    pub fn as_head(&self) -> Head<'_, 'm> {
        match self {
            OutputHead::Frozen(matrix) => Head::Frozen(*matrix),
            OutputHead::Var(var) => Head::Trainable(var),
        }
    }
}
