use crate::{FrozenMatrix, gpu::GpuMatrix};
use halfbyte_matmul as matmul;
use halfbyte_tensor::{DType, Device, Tensor, bf16, f16};
use std::sync::Arc;

/// A weight kept as it was loaded: f32, bf16 or f16.
#[derive(Debug)]
pub struct DenseMatrix {
    weight: Tensor,
}

impl DenseMatrix {
    /// Takes a `(out_features, in_features)` tensor.
    pub fn new(weight: Tensor) -> crate::Result<DenseMatrix> {
        if weight.shape().len() != 2 || !weight.dtype().is_float() {
            return Err(crate::Error::NotAMatrix { shape: weight.shape().to_vec(), dtype: weight.dtype() });
        }
        Ok(DenseMatrix { weight })
    }

    /// The weight.
    pub fn weight(&self) -> &Tensor {
        &self.weight
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

    fn to_device(&self, device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        match device {
            Device::Cpu | Device::Dry(_) => Ok(None),
            Device::Cuda(_) => GpuMatrix::dense(self, device).map(Some),
        }
    }

    fn format(&self) -> String {
        self.weight.dtype().to_string()
    }
}
