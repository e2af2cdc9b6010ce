//! A dense matrix that stays in its file: rows are read when a product asks for them.
//!
//! Slower than memory, but it lets a model be tried that would not fit, and tries the very bytes that were written.

use halfbyte_files::{Placed, Reading, TensorFile};
use halfbyte_matmul as matmul;
use halfbyte_ops::{FrozenMatrix, Refusal, WeightFormat};
use halfbyte_tensor::{DType, Tensor, bf16, f16};
use std::sync::Arc;

/// Leaves every matrix of a folder where it is.
pub(crate) struct Streamed;

impl WeightFormat for Streamed {
    fn freeze(&self, _path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        Err(format!("the merged folder holds it in another form than {:?} floats", weight.shape()).into())
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.freeze(path, weight)
    }

    fn stored(
        &self,
        path: &str,
        dims: (usize, usize),
        files: &Reading<'_>,
    ) -> Result<Option<Arc<dyn FrozenMatrix>>, Refusal> {
        let Some((file, place)) = files.take(&format!("{path}.weight")) else { return Ok(None) };
        let Some(dtype) = DType::of_files(place.dtype).filter(|it| it.is_float()) else { return Ok(None) };
        if place.shape != [dims.0, dims.1] {
            return Ok(None);
        }
        Ok(Some(Arc::new(StreamedMatrix { file: file.clone(), place: place.clone(), dims, dtype })))
    }
}

#[derive(Debug)]
struct StreamedMatrix {
    file: Arc<TensorFile>,
    place: Placed,
    dims: (usize, usize),
    dtype: DType,
}

impl FrozenMatrix for StreamedMatrix {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        Box::new(Rows(self))
    }

    fn bytes(&self) -> usize {
        0
    }

    fn format(&self) -> String {
        format!("{} in its file", self.dtype)
    }
}

#[derive(Debug)]
struct Rows<'a>(&'a StreamedMatrix);

impl matmul::Source for Rows<'_> {
    fn rows(&self) -> usize {
        self.0.dims.0
    }

    fn cols(&self) -> usize {
        self.0.dims.1
    }

    /// What cannot be read becomes NaN, which whoever uses the product sees.
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        let StreamedMatrix { file, place, dims, dtype } = self.0;
        let size = dtype.size();
        let mut bytes = vec![0; out.len() * size];
        if file.read_part(place, (row * dims.1 + col) * size, &mut bytes).is_err() {
            return out.fill(f32::NAN);
        }
        let numbers = out.iter_mut().zip(bytes.chunks_exact(size));
        match dtype {
            DType::Bf16 => numbers.for_each(|(o, b)| *o = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            DType::F16 => numbers.for_each(|(o, b)| *o = f16::from_le_bytes([b[0], b[1]]).to_f32()),
            _ => numbers.for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        }
    }
}
