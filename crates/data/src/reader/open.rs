//! Opening a data file: what is no file is refused, and what is compressed is decompressed on the way.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};

/// A mark that some editors put before UTF-8.
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// Bytes of a data file, decompressed.
pub(super) type Bytes = Box<dyn BufRead + Send>;

/// Opens a file that is not read from beginning to end. A pipe would be waited for without end, and could not be read twice.
pub(super) fn file(path: &Path) -> Result<File> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { path: path.into() },
        _ => Error::Read { path: path.into(), source },
    };
    let what = std::fs::metadata(path).map_err(failed)?;
    if !what.is_file() {
        let found = if what.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::Format { path: path.into(), reason: format!("{found}, where one data file is expected") });
    }
    File::open(path).map_err(failed)
}

/// Opens a file for reading from its beginning, through gzip or Zstandard if its first bytes say so.
pub(super) fn bytes(path: &Path) -> Result<Bytes> {
    let read = |source| Error::Read { path: path.into(), source };
    let mut raw = BufReader::with_capacity(1 << 16, Patient(file(path)?));
    let head = raw.fill_buf().map_err(read)?;
    let compressed_by = |name: &str| Error::Format {
        path: path.into(),
        reason: format!("compressed by {name}; decompress it, or compress it with gzip or zstd"),
    };
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(raw))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(BufReader::with_capacity(1 << 16, zstd::stream::read::Decoder::with_buffer(raw).map_err(read)?))
        }
        [b'B', b'Z', b'h', ..] => return Err(compressed_by("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(compressed_by("xz")),
        [b'P', b'K', 3, 4, ..] => return Err(compressed_by("zip")),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Err(Error::Format { path: path.into(), reason: "UTF-16 text; save it as UTF-8".into() });
        }
        _ => Box::new(raw),
    })
}

/// A reader that tries again what a signal interrupted: those who read by buffers do not, and some network file systems let signals in.
struct Patient<R>(R);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// The first bytes of a file, decompressed.
pub(super) fn head(path: &Path, count: u64) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    bytes(path)?.take(count).read_to_end(&mut head).map_err(|source| Error::Read { path: path.into(), source })?;
    Ok(head)
}

/// The end of a file's name that tells its format, in lower case and without that of a compression.
pub(super) fn extension(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    name.rsplit_once('.').map(|it| it.1.to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_signal_interrupts_is_tried_again() {
        struct Interrupted(usize);
        impl Read for Interrupted {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 | 2 => Err(io::ErrorKind::Interrupted.into()),
                    3 => {
                        out[0] = b'x';
                        Ok(1)
                    }
                    _ => Ok(0),
                }
            }
        }
        assert_eq!(BufReader::new(Patient(Interrupted(0))).fill_buf().unwrap(), b"x");
    }

    #[test]
    fn what_fails_otherwise_is_told() {
        struct Broken(bool);
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) { Ok(0) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            }
        }
        let error = BufReader::new(Patient(Broken(false))).fill_buf().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
