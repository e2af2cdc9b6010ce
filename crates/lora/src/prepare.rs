use crate::Result;
use halfbyte_tensor::Tensor;

/// An adapter's initialisation that changes the base: it takes a part of a weight over (PiSSA) or looks at the error that
/// storing it in few bits will make (LoftQ).
///
/// So adapters are chosen before weights are loaded: whoever loads offers every linear layer's dense weight, and what comes back
/// is frozen in its place.
pub trait Prepare {
    /// Whether the weight of the layer at `path` is to be changed. One that is stored in few bits already cannot be.
    fn wants(&self, path: &str) -> bool;

    /// The `(out_features, in_features)` weight to freeze instead of `weight`, in the same dtype or another floating-point one.
    /// Asked once for each layer that is wanted.
    fn replace(&mut self, path: &str, weight: Tensor) -> Result<Tensor>;
}
