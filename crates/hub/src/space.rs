//! How much room a disk has.

use std::path::Path;

/// Bytes that may still be written where a path lies, or will lie; none where the system does not say.
#[cfg(unix)]
pub(crate) fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|it| it.exists())?;
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let it = rustix::fs::statvfs(there).ok()?;
    Some(it.f_bavail.saturating_mul(it.f_frsize))
}

/// Bytes that may still be written where a path lies, or will lie; none where the system does not say.
#[cfg(not(unix))]
pub(crate) fn free(_: &Path) -> Option<u64> {
    None
}
