//! A dense matrix that stays in its file: rows are read when a product asks for them.
//!
//! Slower than memory, but it lets a model be tried that would not fit, and tries the very bytes that were written.

use halfbyte_files::{Placed, Reading, TensorFile};
use halfbyte_frozen::Format;
use halfbyte_matmul as matmul;
use halfbyte_ops::{FrozenMatrix, Refusal, WeightFormat};
use halfbyte_tensor::{DType, Device, Tensor, bf16, f16};
use std::{
    cell::RefCell,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Rows that are read together at most, as a strip of a product wants them: it asks for some hundred numbers of each at a time.
const TOGETHER: usize = 32;
/// Bytes of them at most, unless one row is longer.
const TOGETHER_BYTES: usize = 1 << 20;

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
        static READERS: AtomicU64 = AtomicU64::new(0);
        Box::new(Rows { matrix: self, reader: READERS.fetch_add(1, Ordering::Relaxed) + 1 })
    }

    fn bytes(&self) -> usize {
        0
    }

    fn format(&self) -> String {
        format!("{} in its file", self.dtype)
    }
}

/// The matrix for one product. What it reads is not kept for the next one, so that a file that changes is seen.
#[derive(Debug)]
struct Rows<'a> {
    matrix: &'a StreamedMatrix,
    reader: u64,
}

/// The rows that a thread read last.
#[derive(Default)]
struct Block {
    reader: u64,
    rows: Range<usize>,
    bytes: Vec<u8>,
}

thread_local! {
    static BLOCK: RefCell<Block> = RefCell::default();
}

impl Rows<'_> {
    /// Calls `f` with the bytes of so many numbers of a row.
    fn with_bytes<R>(
        &self,
        (row, col, len): (usize, usize, usize),
        f: impl FnOnce(&[u8]) -> R,
    ) -> halfbyte_files::Result<R> {
        let StreamedMatrix { file, place, dims: (rows, cols), dtype, .. } = self.matrix;
        let size = dtype.size();
        let row_bytes = cols * size;
        // Taken, not borrowed: who reads a very long row may be handed another piece of work meanwhile.
        let mut block = BLOCK.take();
        if block.reader != self.reader || !block.rows.contains(&row) {
            let together = TOGETHER.min((TOGETHER_BYTES / row_bytes.max(1)).max(1));
            let first = row / together * together;
            let wanted = first..(first + together).min(*rows);
            block.reader = 0;
            block.bytes.resize(wanted.len() * row_bytes, 0);
            if file.read_part(place, first * row_bytes, &mut block.bytes).is_err() {
                // Another of these rows may be what is not there.
                let part = &mut block.bytes[..len * size];
                file.read_part(place, row * row_bytes + col * size, part)?;
                return Ok(f(part));
            }
            (block.reader, block.rows) = (self.reader, wanted);
        }
        let result = f(&block.bytes[(row - block.rows.start) * row_bytes + col * size..][..len * size]);
        BLOCK.set(block);
        Ok(result)
    }
}

impl matmul::Source for Rows<'_> {
    fn rows(&self) -> usize {
        self.matrix.dims.0
    }

    fn cols(&self) -> usize {
        self.matrix.dims.1
    }

    /// What cannot be read becomes NaN, and [`Failed`] knows why.
    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        let read = self.with_bytes((row, col, out.len()), |bytes| {
            let numbers = out.iter_mut().zip(bytes.chunks_exact(self.matrix.dtype.size()));
            match self.matrix.dtype {
                DType::Bf16 => numbers.for_each(|(o, b)| *o = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
                DType::F16 => numbers.for_each(|(o, b)| *o = f16::from_le_bytes([b[0], b[1]]).to_f32()),
                _ => numbers.for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            }
        });
        if let Err(error) = read {
            self.matrix.failed.note(error);
            out.fill(f32::NAN);
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
