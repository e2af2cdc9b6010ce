//! By what weights are known again: a number of their names, shapes and a few bytes of each, which takes no reading of all.

use halfbyte_files::{Placed, ShardedFiles, TensorFile};
use halfbyte_models::ModelFolder;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, hash::Hasher as _, path::Path};
use twox_hash::XxHash3_64;

/// Bytes that count of the beginning, the middle and the end of a tensor.
const SAMPLE: usize = 64;

/// Sixteen digits where it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    /// Of a model whose weights are as they were trained; none of one that is stored quantised, which has other bytes than what it was made of.
    pub(crate) fn of_base(folder: &ModelFolder) -> anyhow::Result<Option<Fingerprint>> {
        if folder.is_quantized() {
            return Ok(None);
        }
        let files: &ShardedFiles = folder.files();
        let mut hash = XxHash3_64::new();
        for (name, _) in files.iter() {
            if let Some((file, place)) = files.get(name) {
                take(&mut hash, name, (file, place))?;
            }
        }
        Ok(Some(Fingerprint(hash.finish())))
    }

    /// Of an adapter's folder.
    pub(crate) fn of_adapter(dir: &Path) -> anyhow::Result<Fingerprint> {
        let names = ["adapter_model.safetensors", "adapter_model.bin"].map(|it| dir.join(it));
        let path = names.iter().find(|it| it.exists()).unwrap_or(&names[0]);
        let (file, mut hash) = (TensorFile::open(path)?, XxHash3_64::new());
        for (name, place) in file.tensors() {
            take(&mut hash, name, (&file, place))?;
        }
        Ok(Fingerprint(hash.finish()))
    }
}

fn take(hash: &mut XxHash3_64, name: &str, (file, place): (&TensorFile, &Placed)) -> anyhow::Result<()> {
    let bytes = place.bytes();
    hash.write(format!("{name} {:?} {:?}\n", place.dtype, place.shape).as_bytes());
    let len = SAMPLE.min(bytes);
    for at in [0, (bytes - len) / 2, bytes - len] {
        let mut sample = [0; SAMPLE];
        file.read_part(place, at, &mut sample[..len])?;
        hash.write(&sample[..len]);
    }
    Ok(())
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.len() == 16 && text.bytes().all(|it| it.is_ascii_hexdigit());
        let wrong = || de::Error::custom(format!("expected 16 hexadecimal digits, got {text:?}"));
        if digits { u64::from_str_radix(&text, 16).map(Fingerprint).map_err(|_| wrong()) } else { Err(wrong()) }
    }
}
