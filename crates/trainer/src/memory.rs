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
pub(crate) fn address_space_left() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|it| it.strip_prefix("Max address space"))?;
    let limit: usize = limit.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(kib(Path::new("/proc/self/status"), "VmSize:")?))
}

/// The least that a control group, or one above it, leaves. Cached files count as free: they go when memory is wanted.
fn groups_left() -> Option<usize> {
    least(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new("/sys/fs/cgroup"))
}

/// The names under which the two versions tell a group's limit, its use and the cached files in it.
const SECOND: [&str; 3] = ["memory.max", "memory.current", "inactive_file "];
const FIRST: [&str; 3] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];

/// Of the groups that the system lists for a process; a machine may have both versions at a time.
fn least(groups: &str, root: &Path) -> Option<usize> {
    let of = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, names) = match controllers {
            "" if number == "0" => (root.to_owned(), SECOND),
            it if it.split(',').any(|it| it == "memory") => (root.join("memory"), FIRST),
            _ => return None,
        };
        let own = root.join(path.trim_start_matches('/'));
        // In a container the group's own path may not be there, and its root is the group.
        own.ancestors().take_while(|it| it.starts_with(&root)).filter_map(|it| group_left(it, names)).min()
    };
    groups.lines().filter_map(of).min()
}

fn group_left(group: &Path, [limit, used, cached]: [&str; 3]) -> Option<usize> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<usize>().ok();
    let (limit, used) = (number(limit)?, number(used)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|it| it.strip_prefix(cached)?.trim().parse().ok()).unwrap_or(0);
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
        assert_eq!(group_left(dir.path(), SECOND), None);
        write("memory.max", "max\n");
        write("memory.current", "3000\n");
        assert_eq!(group_left(dir.path(), SECOND), None, "no limit");
        write("memory.max", "4000\n");
        assert_eq!(group_left(dir.path(), SECOND), Some(1000));
        write("memory.stat", "anon 1000\ninactive_file 500\n");
        assert_eq!(group_left(dir.path(), SECOND), Some(1500));
    }

    #[test]
    fn groups_of_both_versions_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let groups = "4:cpu:/a\n3:memory:/docker/x\n0::/b\n";
        assert_eq!(least(groups, dir.path()), None);
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/memory.usage_in_bytes", "5000\n");
        write("memory/docker/x/memory.limit_in_bytes", "9000\n");
        write("memory/docker/x/memory.usage_in_bytes", "5000\n");
        write("memory/docker/x/memory.stat", "cache 1500\ntotal_inactive_file 1000\n");
        assert_eq!(least(groups, dir.path()), Some(5000));
        write("b/memory.max", "700\n");
        write("b/memory.current", "100\n");
        assert_eq!(least(groups, dir.path()), Some(600));
        assert_eq!(
            least("3:cpu,memory:/gone\n", dir.path()),
            Some(9223372036854771712 - 5000),
            "the root is the group"
        );
    }
}
