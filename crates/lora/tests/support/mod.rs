//! Frozen matrices of the tests: lora works over any, and knows none.

use halfbyte_lora::Base;
use halfbyte_matmul::{Dense, Source};
use halfbyte_ops::FrozenMatrix;
use halfbyte_tensor::Tensor;
use std::sync::Arc;

#[derive(Debug)]
struct Matrix(Tensor);

impl FrozenMatrix for Matrix {
    fn dims(&self) -> (usize, usize) {
        (self.0.shape()[0], self.0.shape()[1])
    }

    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        let (out, inner) = self.dims();
        Box::new(Dense::new(out, inner, self.0.data::<f32>()))
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn format(&self) -> String {
        "f32".into()
    }
}

/// A matrix kept as it is.
pub(crate) fn dense(weight: Tensor) -> Base {
    Base::Frozen(Arc::new(Matrix(weight)))
}
