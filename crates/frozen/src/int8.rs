use crate::{FrozenMatrix, gpu::GpuMatrix, llm_int8};
use halfbyte_matmul as matmul;
use halfbyte_nf4::{Rows8, quantize_rows8};
use halfbyte_tensor::{Device, Tensor, with_float};
use std::sync::Arc;

/// A weight of 8-bit integers with a scale a row, as LLM.int8() stores it, multiplied as LLM.int8() does.
///
/// The gradient of the input is that of the decoded weight, as in bitsandbytes.
#[derive(Debug)]
pub struct Int8Matrix {
    rows: Rows8,
}

impl Int8Matrix {
    /// Quantises a `(out_features, in_features)` tensor row by row.
    pub fn quantize(weight: &Tensor) -> crate::Result<Int8Matrix> {
        let &[out, inner] = weight.shape() else {
            return Err(crate::Error::NotAMatrix { shape: weight.shape().to_vec(), dtype: weight.dtype() });
        };
        let rows = with_float!(weight.dtype(), T, quantize_rows8(weight.data::<T>(), out, inner))?;
        Ok(Int8Matrix { rows })
    }

    /// Takes rows that were quantised elsewhere.
    pub fn from_rows(rows: Rows8) -> Int8Matrix {
        Int8Matrix { rows }
    }

    /// The codes and scales.
    pub fn rows(&self) -> &Rows8 {
        &self.rows
    }
}

impl FrozenMatrix for Int8Matrix {
    fn dims(&self) -> (usize, usize) {
        (self.rows.rows, self.rows.cols)
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        let Rows8 { rows, cols, codes, absmax, .. } = &self.rows;
        Box::new(matmul::Rows8::new(*rows, *cols, codes, absmax))
    }

    fn forward(&self, x: &Tensor) -> Option<halfbyte_autograd::Result<Tensor>> {
        Some(Ok(llm_int8::product(&self.rows, x)))
    }

    fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    fn to_device(&self, device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        match device {
            Device::Cpu | Device::Dry(_) => Ok(None),
            Device::Cuda(_) => GpuMatrix::rows8(self, device).map(Some),
        }
    }

    fn format(&self) -> String {
        "int8 (a scale a row)".into()
    }
}
