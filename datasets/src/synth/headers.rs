//! A folder whose weights are a header and a hole: enough for a plan, and no room on the disk, whatever the model's size.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::{fs::File, io::Write, path::Path};

use super::Random;

/// Writes `model.safetensors` in `dir`: as long as the weights would make it, with nothing but zeros behind its header.
pub(super) fn write(dir: &Path, tensors: &[Random]) -> Result<()> {
    let (mut header, mut at) = (Map::new(), 0u64);
    for it in tensors {
        let end = at + it.spec.bytes() as u64;
        let entry = json!({ "dtype": it.spec.dtype.name(), "shape": it.spec.shape, "data_offsets": [at, end] });
        header.insert(it.spec.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let path = dir.join("model.safetensors");
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&text)?;
        file.set_len(8 + text.len() as u64 + at)
    };
    write().with_context(|| path.display().to_string())
}
