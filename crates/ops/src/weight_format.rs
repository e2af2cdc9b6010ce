//! How the weights of frozen layers come to be kept: all that a loader has to know of a format.

use crate::FrozenMatrix;
use halfbyte_files::Reading;
use halfbyte_tensor::{Device, Tensor};
use std::sync::Arc;

/// Why a format does not take a weight.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// A way to keep the weights of frozen linear layers.
pub trait WeightFormat {
    /// Keeps the dense `(out_features, in_features)` weight of the linear layer at `path`.
    fn freeze(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal>;

    /// Keeps a weight that is never stored in few bits: that of the output head.
    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal>;

    /// Whether weights may lie on a GPU when they are to be frozen or kept.
    fn takes_from_gpu(&self) -> bool {
        false
    }

    /// Takes over the matrix at `path` of `(out_features, in_features)` as the files hold it, without a dense weight on the way; on the
    /// device, or in host memory if it has to be brought there. `None` where they hold a dense one, which then comes to [`freeze`](Self::freeze) or [`keep`](Self::keep).
    fn stored(
        &self,
        _path: &str,
        _dims: (usize, usize),
        _files: &Reading<'_>,
        _device: &Device,
    ) -> Result<Option<Arc<dyn FrozenMatrix>>, Refusal> {
        Ok(None)
    }
}
