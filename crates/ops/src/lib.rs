//! Fused ops for transformers: every folder is one op, its backward derived by hand beside its forward.
//!
//! Activations are `(rows, channels)` with `rows = batch * time`; their dtype is the compute dtype, while statistics and
//! sums are kept in f32.

pub mod add;
pub mod attention;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod frozen_linear;
pub mod gelu_new;
pub mod layer_norm;
pub mod linear;
pub mod lora_linear;
pub mod rms_norm;
pub mod rope;
pub mod silu_mul;

mod exp;
mod product;

pub use cross_entropy::{Head, IGNORE, cross_entropy, logits};
pub use dropout::{Dropout, dropout};
pub use embedding::embedding;
pub use frozen_linear::{FrozenMatrix, frozen_linear};
pub use linear::linear;
pub use lora_linear::{LowRank, lora_linear};
