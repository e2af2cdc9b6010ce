//! A weight as it was loaded.

use crate::{Error, Format, FrozenMatrix, Result, coded::is_at, quant::Store};
use halfbyte_matmul as matmul;
use halfbyte_ops::frozen::OnDevice;
use halfbyte_tensor::{DType, Device, Place, Tensor, bf16, f16};
use std::sync::Arc;

/// No format: f32, bf16 or f16.
pub(crate) struct Dense;

impl Store for Dense {
    fn freeze(&self, _: &Format, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>> {
        Ok(Arc::new(DenseMatrix::new(weight)?))
    }

    fn takes_from_gpu(&self) -> bool {
        true
    }

    fn dry(&self, _: &Format, device: &Device, dims: (usize, usize), dtype: DType) -> Arc<dyn FrozenMatrix> {
        Arc::new(DenseMatrix { weight: Tensor::scratch_on(device, &[dims.0, dims.1], dtype) })
    }
}

/// A weight kept as it was loaded: f32, bf16 or f16.
#[derive(Debug)]
pub struct DenseMatrix {
    weight: Tensor,
}

impl DenseMatrix {
    /// Takes a `(out_features, in_features)` tensor.
    pub fn new(weight: Tensor) -> Result<DenseMatrix> {
        if weight.shape().len() != 2 || !weight.dtype().is_float() {
            return Err(Error::NotAMatrix { shape: weight.shape().to_vec(), dtype: weight.dtype() });
        }
        Ok(DenseMatrix { weight })
    }
}

impl FrozenMatrix for DenseMatrix {
    fn dims(&self) -> (usize, usize) {
        (self.weight.shape()[0], self.weight.shape()[1])
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        let (rows, cols) = self.dims();
        match self.weight.dtype() {
            DType::F32 => Box::new(matmul::Dense::new(rows, cols, self.weight.data::<f32>())),
            DType::Bf16 => Box::new(matmul::Dense::new(rows, cols, self.weight.data::<bf16>())),
            _ => Box::new(matmul::Dense::new(rows, cols, self.weight.data::<f16>())),
        }
    }

    fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    fn on_device(&self) -> Option<OnDevice<'_>> {
        match self.weight.place() {
            Place::Host => None,
            Place::Gpu(_) | Place::Dry(_) => Some(OnDevice::Dense(&self.weight)),
        }
    }

    fn to_device(&self, device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        if is_at(device, self.weight.place()) {
            return Ok(None);
        }
        Ok(Some(Arc::new(DenseMatrix { weight: self.weight.to_device(device)? })))
    }

    fn format(&self) -> String {
        self.weight.dtype().to_string()
    }
}
