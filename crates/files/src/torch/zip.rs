//! The parts of a zip archive that are stored as they are, which is how `torch.save` writes all of them.

use crate::{Error, Result, reader::read_at};
use std::{collections::BTreeMap, fs::File, path::Path};

/// Where a part's bytes lie in the archive.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) begin: u64,
    pub(super) len: u64,
}

/// Bytes of the record at the end, without its comment; of the pointer to the wide one; of the wide one.
const END: usize = 22;
const LOCATOR: usize = 20;
const WIDE_END: usize = 56;
/// The longest comment.
const COMMENT: u64 = 65_535;
/// Bytes of an entry of the directory, and of the header before a part.
const ENTRY: usize = 46;
const LOCAL: u64 = 30;
/// No real directory is larger.
const MAX_DIRECTORY: u64 = 256 << 20;

/// The parts by name.
pub(super) fn parts(path: &Path, file: &File, len: u64) -> Result<BTreeMap<String, Part>> {
    let damaged = |what: &str| Error::file(path, format!("is not a whole file of torch.save: {what}; fetch it again"));
    let read = |at: u64, count: u64| -> Result<Vec<u8>> {
        if at.checked_add(count).is_none_or(|end| end > len) {
            return Err(damaged("it points beyond its end"));
        }
        let mut bytes = vec![0; count as usize];
        read_at(file, &mut bytes, at).map_err(Error::io(path))?;
        Ok(bytes)
    };
    let tail = (END as u64 + COMMENT).min(len);
    let end = read(len - tail, tail)?;
    let at = end.windows(4).rposition(|it| it == b"PK\x05\x06").filter(|it| it + END <= end.len());
    let at = at.ok_or_else(|| damaged("the directory at its end is missing"))?;
    let record = &end[at..];
    let (mut size, mut begin) = (u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    if let Some(locator) = at.checked_sub(LOCATOR).map(|it| &end[it..at])
        && locator.starts_with(b"PK\x06\x07")
    {
        let wide = read(u64_at(locator, 8), WIDE_END as u64)?;
        (size, begin) = (u64_at(&wide, 40), u64_at(&wide, 48));
    }
    if size > MAX_DIRECTORY {
        return Err(damaged("its directory claims more bytes than any has"));
    }
    let directory = read(begin, size)?;
    let (mut rest, mut parts) = (&directory[..], BTreeMap::new());
    while rest.len() >= ENTRY && rest.starts_with(b"PK\x01\x02") {
        let (name_len, extra_len, comment_len) = (len_at(rest, 28), len_at(rest, 30), len_at(rest, 32));
        let total = ENTRY + name_len + extra_len + comment_len;
        if rest.len() < total {
            return Err(damaged("its directory is cut off"));
        }
        let name = String::from_utf8_lossy(&rest[ENTRY..ENTRY + name_len]).into_owned();
        if len_at(rest, 8) & 1 != 0 || len_at(rest, 10) != 0 {
            return Err(Error::file(
                path,
                format!("holds {name} compressed or encrypted, as torch.save does not write it"),
            ));
        }
        let (part_len, header) = place(rest, &rest[ENTRY + name_len..ENTRY + name_len + extra_len]);
        let local = read(header, LOCAL)?;
        let part_begin = header + LOCAL + len_at(&local, 26) as u64 + len_at(&local, 28) as u64;
        let inside = part_begin.checked_add(part_len).is_some_and(|end| end <= len);
        if !local.starts_with(b"PK\x03\x04") || !inside {
            return Err(damaged(&format!("{name} is not where its directory says")));
        }
        if parts.insert(name.clone(), Part { begin: part_begin, len: part_len }).is_some() {
            return Err(damaged(&format!("{name} stands in its directory twice")));
        }
        rest = &rest[total..];
    }
    Ok(parts)
}

/// The length of an entry's part and where its header begins; what does not fit into 32 bits stands among the extra fields.
fn place(entry: &[u8], mut extra: &[u8]) -> (u64, u64) {
    let (mut len, mut begin) = (u64::from(u32_at(entry, 24)), u64::from(u32_at(entry, 42)));
    while extra.len() >= 4 {
        let (id, size) = (len_at(extra, 0), len_at(extra, 2));
        let Some(field) = extra.get(4..4 + size) else { break };
        if id == 1 {
            // In this order, each only where the entry has no room for it; the packed length stands between the two.
            let mut wide = field.chunks_exact(8).map(|it| u64_at(it, 0));
            let mut take = |it: u64| if it == u64::from(u32::MAX) { wide.next().unwrap_or(it) } else { it };
            len = take(len);
            take(u64::from(u32_at(entry, 20)));
            begin = take(begin);
        }
        extra = &extra[4 + size..];
    }
    (len, begin)
}

fn len_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
