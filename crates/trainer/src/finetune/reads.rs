//! What a run reads may not lie where it writes.

use crate::failure::user_error;
use std::path::{Component, Path, PathBuf};

/// Refuses an `output` that is `source` or holds it, however either is written and whatever links lead there; the same
/// for a folder whose files are links into `output`. A source that is not there is left to whoever reads it.
pub(super) fn refuse(output: &Path, source: &Path) -> anyhow::Result<()> {
    let Ok(read) = source.canonicalize() else { return Ok(()) };
    let place = settled(output);
    let linked = || {
        let entries = std::fs::read_dir(&read).into_iter().flatten().flatten();
        entries.filter_map(|it| it.path().canonicalize().ok()).any(|it| it.starts_with(&place))
    };
    // A folder below what is read replaces nothing of it.
    if !read.starts_with(&place) && !linked() {
        return Ok(());
    }
    Err(user_error(format!(
        "{}: --output would replace {}, which is being read; name another folder",
        output.display(),
        source.display()
    )))
}

/// Where a path leads, of which the end need not exist.
fn settled(path: &Path) -> PathBuf {
    let mut place = PathBuf::new();
    for component in std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components() {
        match component {
            Component::ParentDir => drop(place.pop()),
            it => place.push(it),
        }
        // What a link leads to, so that `..` leaves that.
        place = place.canonicalize().unwrap_or(place);
    }
    place
}
