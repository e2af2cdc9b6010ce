//! `y = x Wᵀ + b` for a weight that never trains: the one waist between quantisation and everything above it.

use halfbyte_autograd::Result;
use halfbyte_matmul as matmul;
use halfbyte_tensor::Tensor;

/// A frozen weight describes itself; the products belong to the ops.
///
/// 4-bit weights stay 4-bit: a product reads them panel by panel, in the forward and again in the backward pass.
pub trait FrozenMatrix: Send + Sync + std::fmt::Debug {
    /// `(out_features, in_features)`.
    fn dims(&self) -> (usize, usize);

    /// The operand that a CPU product reads, of `out_features` rows and `in_features` columns.
    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a>;

    /// Resident bytes.
    fn bytes(&self) -> usize;

    /// What it is, for people: `nf4 (block 64, double quantised)`, `bf16`.
    fn format(&self) -> String;

    /// An override of `x Wᵀ` (without bias) for formats whose forward is not a plain product, such as LLM.int8().
    fn forward(&self, _x: &Tensor) -> Option<Result<Tensor>> {
        None
    }
}
