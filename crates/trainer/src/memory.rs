//! How much memory the process has held, and how much it can still have: where the system tells (Linux).

use std::{fs, path::Path};

/// Peak resident set size in bytes.
pub(crate) fn peak_rss() -> Option<usize> {
    kib(Path::new("/proc/self/status"), "VmHWM:")
}

/// Bytes that can be had without swapping, within the limits of the process and of the control groups that it is in.
pub(crate) fn available() -> Option<usize> {
    let free = kib(Path::new("/proc/meminfo"), "MemAvailable:");
    [free, address_space_left(), groups_left()].into_iter().flatten().min()
}

/// What `ulimit -v` leaves.
fn address_space_left() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|it| it.strip_prefix("Max address space"))?;
    let limit: usize = limit.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(kib(Path::new("/proc/self/status"), "VmSize:")?))
}

/// The least that a control group, or one above it, leaves. Cached files count as free: they go when memory is wanted.
fn groups_left() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|it| it.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    root.join(own).ancestors().take_while(|it| it.starts_with(root)).filter_map(group_left).min()
}

fn group_left(group: &Path) -> Option<usize> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<usize>().ok();
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|it| it.strip_prefix("inactive_file ")?.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// A line of kibibytes, in bytes.
fn kib(file: &Path, key: &str) -> Option<usize> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|it| it.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_leaves_what_it_does_not_use() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(group_left(dir.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "3000\n");
        assert_eq!(group_left(dir.path()), None, "no limit");
        write("memory.max", "4000\n");
        assert_eq!(group_left(dir.path()), Some(1000));
        write("memory.stat", "anon 1000\ninactive_file 500\n");
        assert_eq!(group_left(dir.path()), Some(1500));
    }
}
