//! Files of `torch.save`, read without running anything: the tensors of a flat table by name, and where each lies.
//!
//! Such a file is a zip archive whose parts are stored as they are: `data.pkl` says which tensors there are, as a program for
//! Python's pickle machine, and `data/N` holds the bytes of the N-th storage. The machine here knows the instructions with which tables
//! of tensors are written, and of the functions that such a program may ask for only those that make them; everything else is
//! refused by name. So nothing that a file says is ever run.

mod pickle;
#[cfg(test)]
mod tests;
mod zip;

use crate::{Error, Placed, Result};
use pickle::{Found, View};
use std::{collections::BTreeMap, fs::File, path::Path};
use zip::Part;

/// How a file of `torch.save` begins.
pub(crate) const MAGIC: [u8; 4] = *b"PK\x03\x04";
/// No real table is larger; a flipped bit should not ask for terabytes.
const MAX_PROGRAM: u64 = 256 << 20;

/// The tensors of a file of this length.
pub(crate) fn tensors(path: &Path, file: &File, len: u64) -> Result<BTreeMap<String, Placed>> {
    let wrong = |message: String| Error::file(path, message);
    let parts = zip::parts(path, file, len)?;
    let programs: Vec<&String> = parts.keys().filter(|it| it.ends_with("/data.pkl")).collect();
    let [program] = programs[..] else {
        return Err(wrong("is a zip archive, but not one of torch.save: it has no data.pkl, or several".into()));
    };
    let root = program.trim_end_matches("data.pkl");
    let read = |part: &Part| -> Result<Vec<u8>> {
        if part.len > MAX_PROGRAM {
            return Err(wrong(format!("its table of tensors has {} bytes, which no model has", part.len)));
        }
        let mut bytes = vec![0; part.len as usize];
        crate::reader::read_at(file, &mut bytes, part.begin).map_err(Error::io(path))?;
        Ok(bytes)
    };
    if let Some(order) = parts.get(&format!("{root}byteorder"))
        && read(order)? != b"little"
    {
        return Err(wrong(
            "holds numbers whose bytes are not in little-endian order; save it on another machine".into(),
        ));
    }
    let program = read(&parts[program])?;
    let found = pickle::table(&program).map_err(|it| wrong(format!("{it}; {REMEDY}")))?;
    let mut tensors = BTreeMap::new();
    for Found { name, view } in found {
        let part = parts.get(&format!("{root}data/{}", view.storage));
        let placed = place(&view, part).map_err(|it| wrong(format!("{name} {it}")))?;
        if tensors.insert(name.to_owned(), placed).is_some() {
            return Err(wrong(format!("holds {name} twice")));
        }
    }
    Ok(tensors)
}

/// The number of tensors in the table that a program makes.
///
/// # Errors
/// What is wrong with the program.
pub fn parse_pickle(program: &[u8]) -> std::result::Result<usize, String> {
    Ok(pickle::table(program)?.len())
}

const REMEDY: &str = "save it as safetensors where you trust it, with save_pretrained of transformers or PEFT";

/// Where a tensor lies, if its numbers lie one after the other.
fn place(view: &View<'_>, part: Option<&Part>) -> std::result::Result<Placed, String> {
    let part =
        part.ok_or_else(|| format!("lies in the storage {}, which the file lacks: it is damaged", view.storage))?;
    let mut step = 1usize;
    for (extent, stride) in view.shape.iter().zip(&view.strides).rev() {
        if *extent > 1 && *stride != step {
            return Err(format!("is stored as a view with strides {:?}; {REMEDY}", view.strides));
        }
        step = step.checked_mul(*extent).ok_or("is larger than any tensor")?;
    }
    let size = view.dtype.size() as u64;
    let bytes = (step as u64).checked_mul(size).ok_or("is larger than any tensor")?;
    let begin = (view.offset as u64).checked_mul(size).ok_or("begins beyond any file")?;
    match begin.checked_add(bytes) {
        Some(end) if end <= part.len => {
            Ok(Placed { dtype: view.dtype, shape: view.shape.clone(), begin: part.begin + begin })
        }
        _ => Err(format!("ends beyond its storage of {} bytes; the file is damaged", part.len)),
    }
}
