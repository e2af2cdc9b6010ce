//! A dense matrix that stays in its file: rows are read when a product asks for them.
//!
//! Slower than memory, but it lets a model be tried that would not fit, and tries the very bytes that were written.

use halfbyte_files::{Placed, Reading, TensorFile};
use halfbyte_frozen::Format;
use halfbyte_matmul as matmul;
use halfbyte_ops::{FrozenMatrix, Refusal, WeightFormat};
use halfbyte_tensor::{DType, Device, Tensor, bf16, f16};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Leaves every matrix of a folder where it is.
#[derive(Default)]
pub(crate) struct Streamed {
    failed: Arc<Failed>,
}

/// The first read that failed. A product cannot stop halfway: whoever used its result asks here before believing it.
#[derive(Debug, Default)]
pub(crate) struct Failed(Mutex<Option<halfbyte_files::Error>>);

impl Failed {
    /// Fails if a read did, with the file's name.
    pub(crate) fn check(&self) -> Result<(), halfbyte_files::Error> {
        self.slot().take().map_or(Ok(()), Err)
    }

    fn note(&self, error: halfbyte_files::Error) {
        self.slot().get_or_insert(error);
    }

    fn slot(&self) -> MutexGuard<'_, Option<halfbyte_files::Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streamed {
    /// What failed in reading any of the matrices.
    pub(crate) fn failed(&self) -> Arc<Failed> {
        self.failed.clone()
    }
}

impl WeightFormat for Streamed {
    /// Of a matrix whose rows lie apart in the file, since that holds its transpose, a copy.
    fn freeze(&self, _path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        Ok(Format::DENSE.freeze(weight)?)
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.freeze(path, weight)
    }

    fn stored(
        &self,
        path: &str,
        dims: (usize, usize),
        files: &Reading<'_>,
        _: &Device,
    ) -> Result<Option<Arc<dyn FrozenMatrix>>, Refusal> {
        let Some((file, place)) = files.take(&format!("{path}.weight")) else { return Ok(None) };
        let Some(dtype) = DType::of_files(place.dtype).filter(|it| it.is_float()) else { return Ok(None) };
        if place.shape != [dims.0, dims.1] {
            return Ok(None);
        }
        let failed = self.failed.clone();
        Ok(Some(Arc::new(StreamedMatrix { file: file.clone(), place: place.clone(), dims, dtype, failed })))
    }
}

#[derive(Debug)]
struct StreamedMatrix {
    file: Arc<TensorFile>,
    place: Placed,
    dims: (usize, usize),
    dtype: DType,
    failed: Arc<Failed>,
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

    /// What cannot be read becomes NaN, and [`Failed`] knows why.
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        let StreamedMatrix { file, place, dims, dtype, failed } = self.0;
        let size = dtype.size();
        let mut bytes = vec![0; out.len() * size];
        if let Err(error) = file.read_part(place, (row * dims.1 + col) * size, &mut bytes) {
            failed.note(error);
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

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_files::{ShardedFiles, ShardedWriter, TensorSpec};

    fn row(matrix: &dyn FrozenMatrix, row: usize, col: usize, len: usize) -> Vec<f32> {
        let mut out = vec![0.0; len];
        matrix.source().read_f32(row, col, &mut out);
        out
    }

    #[test]
    fn rows_come_from_the_file_and_an_error_where_it_has_lost_them() {
        let values = Tensor::from_vec(&[3, 4], (0..12).map(|it| it as f32 - 2.5).collect());
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let dir = tempfile::tempdir().unwrap();
            let specs = ["a.weight", "b.weight"].map(|it| TensorSpec::new(it, dtype.in_files(), &[3, 4]));
            let mut writer = ShardedWriter::create(dir.path(), specs.to_vec(), u64::MAX);
            for it in &specs {
                writer.write(&it.name, &values.to_dtype(dtype).le_bytes()).unwrap();
            }
            writer.finish().unwrap();
            let files = ShardedFiles::open(dir.path()).unwrap();
            let reading = Reading::new(&files);
            let streamed = Streamed::default();
            let open = |path: &str, dims| streamed.stored(path, dims, &reading, &Device::Cpu).unwrap();
            assert!(open("a", (4, 3)).is_none() && open("c", (3, 4)).is_none());
            let matrix = open("b", (3, 4)).unwrap();
            assert_eq!(reading.unused(), [] as [&str; 0]);
            assert_eq!((matrix.bytes(), matrix.dims()), (0, (3, 4)));
            assert_eq!(row(matrix.as_ref(), 2, 0, 4), [5.5, 6.5, 7.5, 8.5], "{dtype}");
            assert_eq!(row(matrix.as_ref(), 1, 2, 2), [3.5, 4.5]);
            let weights = dir.path().join("model.safetensors");
            let shorter = std::fs::metadata(&weights).unwrap().len() - dtype.size() as u64;
            std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(shorter).unwrap();
            assert_eq!(row(matrix.as_ref(), 1, 2, 2), [3.5, 4.5], "what is there is still there");
            streamed.failed().check().unwrap();
            assert!(row(matrix.as_ref(), 2, 0, 4).iter().all(|it| it.is_nan()));
            let error = streamed.failed().check().unwrap_err().to_string();
            assert!(error.contains("model.safetensors"), "{error}");
        }
    }
}
