//! What tells the decoders that are built like LLaMA from each other.

use halfbyte_ops::{Gate, cross_entropy::Shaping, experts::Choice, rms_norm::RmsNorm, rope::RopeSpec};

/// What a block computes beyond the sizes that all models share, and what is around the blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// What every norm is like.
    pub norm: RmsNorm,
    /// Where the residual stream is normalised.
    pub norms: Norms,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Whether queries and keys are normalised before they are rotated.
    pub qk_norm: QkNorm,
    /// What the gate of the MLP goes through.
    pub gate: Gate,
    /// On the scores.
    pub scale: f32,
    /// Scores stay below this in size.
    pub cap: Option<f32>,
    /// Whether every head has a score that joins its softmaxes and weighs nothing.
    pub sinks: bool,
    /// The rotations of queries and keys that some layer has.
    pub ropes: Vec<RopeSpec>,
    /// What differs from layer to layer.
    pub layers: Vec<LayerSpec>,
    /// On the embeddings of tokens.
    pub embedding: EmbeddingScale,
    /// On what a half of a block adds to the residual stream.
    pub residual: f32,
    /// From products with the output head to logits.
    pub logits: Shaping,
    /// Whether queries, keys and values are one layer, and gate and up another.
    pub fused: bool,
    /// What the blocks that have experts have of them.
    pub experts: Option<ExpertSpec>,
}

/// Experts instead of one MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertSpec {
    /// Experts of a block.
    pub count: usize,
    /// How tokens choose.
    pub choice: Choice,
    /// Channels inside an expert.
    pub inner: usize,
    /// What they are called.
    pub names: ExpertNames,
    /// The factor on the loss that keeps experts equally busy; none where it is not trained by it.
    pub balance: Option<f32>,
}

/// What experts and their router are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertNames {
    /// The module that holds both, in files.
    pub file: &'static str,
    /// The router.
    pub router: &'static str,
    /// Gate, up and down, in files; none where these have gate and up, channel by channel, in one parameter for all experts, and down in
    /// another, with biases.
    pub matrices: Option<[&'static str; 3]>,
    /// The module that holds both, as adapters know it.
    pub module: &'static str,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// How many keys a query sees; all where there is none.
    pub window: Option<usize>,
    /// Which of the rotations its queries and keys go through; none where positions are left to the mask.
    pub rope: Option<usize>,
    /// Whether it has experts.
    pub sparse: bool,
}

/// Where the residual stream is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// On the way into attention and the MLP.
    Before,
    /// What comes out of them.
    After,
    /// Both.
    Around,
}

/// Whether queries and keys are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// They are not.
    None,
    /// Each head by itself.
    Heads,
    /// All heads as one.
    Whole,
}

/// A factor on the embeddings of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmbeddingScale {
    /// As it is.
    Exact(f32),
    /// Rounded to the dtype of the activations, as Gemma's is.
    Rounded(f32),
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Those of queries, keys and values.
    pub qkv: bool,
    /// The one of attention's output.
    pub o: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

impl BlockSpec {
    /// For every layer, how many keys a query sees; all where there is none.
    pub fn windows(&self) -> Vec<Option<usize>> {
        self.layers.iter().map(|it| it.window).collect()
    }
}
