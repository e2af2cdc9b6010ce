use crate::{Error, Placed, Result, header, hints, open_file, torch};
use rayon::prelude::*;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Bytes that a thread reads at a time.
const PIECE: usize = 1 << 20;

/// An opened safetensors file, or one of `torch.save`, whose header was found good: every tensor can be read from its place, whole or in part, by
/// any number of threads.
///
/// Reads go through the file into a buffer of the caller's. Mapping it would count every touched page as resident memory,
/// which is what a 4-bit load wants to avoid.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Placed>,
}

impl TensorFile {
    /// Opens a file and checks its header against its length; reads no tensor.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let io = Error::io(path);
        let file = open_file(path)?;
        let len = file.metadata().map_err(&io)?.len();
        let mut head = Vec::with_capacity(header::PREFIX_BYTES as usize);
        (&file).take(header::PREFIX_BYTES).read_to_end(&mut head).map_err(&io)?;
        if head.starts_with(&torch::MAGIC) {
            let tensors = torch::tensors(path, &file, len)?;
            return Ok(TensorFile { path: path.to_owned(), file, tensors });
        }
        let checked = TensorFile::checked(path, &file, &head, len);
        let tensors = checked.map_err(|error| match (error, hints::of_file(path)) {
            (Error::File { path, .. }, Some(hint)) => Error::file(&path, format!("is not a safetensors file: {hint}")),
            (Error::File { path, .. }, None) if path.extension().is_some_and(|it| it == "bin") => {
                Error::file(&path, "is not a whole file of torch.save, nor one of safetensors; fetch it again")
            }
            (error, _) => error,
        })?;
        Ok(TensorFile { path: path.to_owned(), file, tensors })
    }

    /// The tensors of a safetensors file of this length, of which the first bytes were read.
    fn checked(path: &Path, mut file: &File, head: &[u8], len: u64) -> Result<BTreeMap<String, Placed>> {
        let Ok(prefix) = head.try_into() else {
            return Err(Error::file(path, format!("is not a safetensors file: it has only {len} bytes")));
        };
        let mut text = vec![0; header::header_len(path, prefix, len)?];
        file.read_exact(&mut text).map_err(Error::io(path))?;
        Ok(header::parse(path, &text, len)?.into_iter().collect())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Placed> {
        &self.tensors
    }

    /// What and where the tensor of a name is.
    pub fn get(&self, name: &str) -> Option<&Placed> {
        self.tensors.get(name)
    }

    /// The bytes of one of its tensors, little-endian.
    pub fn read(&self, tensor: &Placed) -> Result<Vec<u8>> {
        let mut bytes = vec![0; tensor.bytes()];
        self.read_part(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out` from byte `offset` of one of its tensors on, which must reach so far; by several threads where it is long.
    pub fn read_part(&self, tensor: &Placed, offset: usize, out: &mut [u8]) -> Result<()> {
        let within = offset.checked_add(out.len()).is_some_and(|it| it <= tensor.bytes());
        assert!(within, "{} bytes from {offset} on are no part of a tensor of {}", out.len(), tensor.bytes());
        let begin = tensor.begin + offset as u64;
        // The memory is new more often than not, so that each thread also takes its share of the faults on its pages.
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        let read = pieces.try_for_each(|(i, piece)| read_at(&self.file, piece, begin + (i * PIECE) as u64));
        read.map_err(Error::io(&self.path))
    }
}

#[cfg(unix)]
pub(crate) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (bytes, at) = (&mut bytes[n..], at + n as u64),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_tensor_is_read_in_pieces_and_a_part_of_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long.safetensors");
        let bytes: Vec<u8> = (0..5 * PIECE / 2 + 3).map(|i| (i * 7 / 3) as u8).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![bytes.len()], &bytes).unwrap();
        safetensors::serialize_to_file([("long", view)], None, &path).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let long = file.get("long").unwrap();
        assert!(file.read(long).unwrap() == bytes);
        let mut part = vec![0; PIECE + 5];
        file.read_part(long, 77, &mut part).unwrap();
        assert!(part == bytes[77..][..PIECE + 5]);
        // The file shrinks behind our back: an error, not a crash.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(PIECE as u64 * 2).unwrap();
        assert!(file.read(long).is_err());
    }
}
