//! The header of a safetensors file: its JSON, checked before anything believes it.
//!
//! A file is a length (8 bytes, little-endian), that many bytes of JSON, and the tensors' bytes. The JSON maps a tensor's name
//! to its dtype, shape and place among those bytes. Tensors must fill the rest of the file without a gap and without sharing
//! a byte: so no value can be read that a file's author hid from other readers, and none from outside of its tensor.

use crate::{Dtype, Error, Result};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value, json};
use std::{fmt, path::Path};

/// Bytes of the header's length.
pub(crate) const PREFIX_BYTES: u64 = 8;
/// No real header is larger; a flipped bit in its length should not ask for terabytes.
pub(crate) const MAX_HEADER_BYTES: u64 = 100 << 20;

/// What a tensor is: enough to write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// The extents, outermost first; none is a single element.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of this name, dtype and shape.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// What a tensor is and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The type of its elements.
    pub dtype: Dtype,
    /// The extents, outermost first; none is a single element.
    pub shape: Vec<usize>,
    /// The byte of the file where it begins.
    pub begin: u64,
}

impl Placed {
    /// Its elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }
}

/// The header of a file that is to hold these tensors one after the other, with its length, padded so that they begin at a
/// multiple of 8: readers map the file and want aligned numbers.
pub(crate) fn render(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut begin = 0;
    for it in tensors {
        let end = begin + it.bytes();
        let entry = json!({ "dtype": it.dtype.name(), "shape": it.shape, "data_offsets": [begin, end] });
        assert!(entries.insert(it.name.clone(), entry).is_none(), "the tensor {} is written twice", it.name);
        begin = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// The length of the header, from a file's first bytes and its length.
pub(crate) fn header_len(path: &Path, prefix: [u8; PREFIX_BYTES as usize], file_len: u64) -> Result<usize> {
    let header = u64::from_le_bytes(prefix);
    if header > MAX_HEADER_BYTES || header > file_len.saturating_sub(PREFIX_BYTES) {
        return Err(Error::file(
            path,
            format!("is not a whole safetensors file: its header claims {header} bytes, the file has {file_len}"),
        ));
    }
    Ok(header as usize)
}

/// The tensors of a header, by their place in the file.
///
/// # Errors
/// A header that is damaged, or not that of a file of this length.
pub fn parse(path: &Path, header: &[u8], file_len: u64) -> Result<Vec<(String, Placed)>> {
    let wrong = |message: String| Error::file(path, message);
    let Entries(entries) = serde_json::from_slice(header).map_err(|e| wrong(format!("its header is damaged: {e}")))?;
    let data = PREFIX_BYTES + header.len() as u64;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let placed = entry.placed(&name, data, file_len).map_err(wrong)?;
        tensors.push((name, placed));
    }
    // An empty tensor stands before what begins at the same byte.
    tensors.sort_by(|a, b| (a.1.begin, a.1.bytes(), &a.0).cmp(&(b.1.begin, b.1.bytes(), &b.0)));
    let mut end = data;
    for (i, (name, it)) in tensors.iter().enumerate() {
        if it.begin < end {
            let before = &tensors[i - 1].0;
            return Err(wrong(format!("{name} overlaps {before}; the header is damaged, or made to deceive")));
        }
        if it.begin > end {
            return Err(wrong(format!(
                "bytes {end} to {} before {name} belong to no tensor; the header is damaged",
                it.begin
            )));
        }
        end += it.bytes() as u64;
    }
    if end < file_len {
        return Err(wrong(format!(
            "goes on after its last tensor: that ends at byte {end}, the file has {file_len}; the file is damaged"
        )));
    }
    Ok(tensors)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl Entry {
    /// Where it lies in a file whose tensors begin at byte `data`.
    fn placed(self, name: &str, data: u64, file_len: u64) -> std::result::Result<Placed, String> {
        let Entry { dtype, shape, data_offsets } = self;
        let Some(dtype) = Dtype::parse(&dtype) else {
            return Err(format!("{name} has the unknown dtype {dtype:?}; expected one such as F32, F16 or BF16"));
        };
        let elements = shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent));
        let bytes = elements.and_then(|it| it.checked_mul(dtype.size())).map(|it| it as u64);
        if bytes.is_none() || bytes != data_offsets.1.checked_sub(data_offsets.0) {
            return Err(format!(
                "{name} of shape {shape:?} does not fill its place in the file; the header is damaged"
            ));
        }
        match data.checked_add(data_offsets.1) {
            Some(end) if end <= file_len => Ok(Placed { dtype, shape, begin: data + data_offsets.0 }),
            _ => Err(format!(
                "is not a whole safetensors file: it is truncated, since {name} ends at byte {} and the file has {file_len}; fetch it again",
                data.saturating_add(data_offsets.1)
            )),
        }
    }
}

/// The header's object, in which no name may stand twice: readers would disagree on which one counts.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Entries, D::Error> {
        from.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Entries, M::Error> {
        use serde::de::Error as _;
        let mut seen = std::collections::HashSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(M::Error::custom(format!("{name:?} stands in it twice")));
            }
            if name == "__metadata__" {
                map.next_value::<std::collections::HashMap<String, String>>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Entries(entries))
    }
}
