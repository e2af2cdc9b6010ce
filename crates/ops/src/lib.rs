//! Fused ops for transformers: every folder is one op, its backward derived by hand beside its forward.
//!
//! Activations are `(tokens, channels)`, the rows of a [`Layout`]; their dtype is the compute dtype, while statistics and
//! sums are kept in f32.

pub mod add;
pub mod attention;
pub mod cross_entropy;
pub mod dora;
pub mod dropout;
pub mod embedding;
pub mod experts;
pub(crate) mod few_rows;
pub mod frozen;
pub mod frozen_linear;
pub mod gated;
pub mod gelu;
pub mod gpu_product;
pub mod kv_pages;
pub mod layer_norm;
pub mod linear;
pub mod lora_linear;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod split;

#[cfg(all(test, target_os = "linux"))]
mod cuda_tests;
mod exp;
mod ids;
mod lanes;
mod layout;
mod place;
mod product;
#[cfg(test)]
mod recompute_tests;
mod repeat;
mod weight_format;

pub use add::{add, add_scaled, scale};
pub use attention::{AttentionShape, attend_cached, attention};
pub use cross_entropy::{Head, Matrix, Shaping, cross_entropy, logits};
pub use dora::{dora_scale, row_norms};
pub use dropout::{Dropout, dropout};
pub use embedding::embedding;
pub use frozen::FrozenMatrix;
pub use frozen_linear::frozen_linear;
pub use gated::{Gate, gated};
pub use gelu::{Gelu, gelu};
pub use ids::{IGNORE, Ids, Targets};
pub use layer_norm::layer_norm;
pub use layout::{FORGOTTEN, Layout, Segment};
pub use linear::linear;
pub use lora_linear::{Layer, LowRank, lora_linear, lora_linears};
pub use repeat::{repeated, settle};
pub use rms_norm::{RmsNorm, rms_norm};
pub use rope::{RopeScaling, RopeSpec, RopeTable, rope};
pub use rows::{RowGroups, deal_rows, gather_rows};
pub use sample::{Chosen, Draw, Sampling, sample};
pub use split::{Columns, split};
pub use weight_format::{Refusal, WeightFormat};
