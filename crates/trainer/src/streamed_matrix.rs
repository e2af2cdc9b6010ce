//! A dense matrix that stays in its file: rows are read when a product asks for them.
//!
//! Slower than memory, but it lets a model be tried that would not fit, and tries the very bytes that were written.

use halfbyte_matmul as matmul;
use halfbyte_models::ModelFolder;
use halfbyte_ops::FrozenMatrix;
use halfbyte_tensor::{DType, bf16, f16};
use std::{fs::File, io, sync::Arc};

#[derive(Debug)]
pub(crate) struct StreamedMatrix {
    file: File,
    /// Where its numbers begin in the file.
    begin: u64,
    dims: (usize, usize),
    dtype: DType,
}

impl StreamedMatrix {
    /// The `(out_features, in_features)` weight of the module at `path`; `None` if the folder has none of that size.
    pub(crate) fn open(
        folder: &ModelFolder,
        path: &str,
        dims: (usize, usize),
    ) -> io::Result<Option<Arc<dyn FrozenMatrix>>> {
        let name = format!("{path}.weight");
        let Some((info, (shard, begin))) = folder.tensors().get(&name).zip(folder.place(&name)) else {
            return Ok(None);
        };
        if info.shape != [dims.0, dims.1] || !info.dtype.is_float() {
            return Ok(None);
        }
        Ok(Some(Arc::new(StreamedMatrix { file: File::open(shard)?, begin, dims, dtype: info.dtype })))
    }
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
        let StreamedMatrix { file, begin, dims, dtype } = self.0;
        let size = dtype.size();
        let mut bytes = vec![0; out.len() * size];
        let at = begin + ((row * dims.1 + col) * size) as u64;
        if read_at(file, &mut bytes, at).is_err() {
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

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (bytes, at) = (&mut bytes[n..], at + n as u64),
        }
    }
    Ok(())
}
