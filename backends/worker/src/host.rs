//! Resources of the machine and of the control group of this process.

/// Bytes that a line of this process's status says; 0 if the system does not say.
pub(crate) fn status_bytes(key: &str) -> u64 {
    kibibytes("/proc/self/status", key).unwrap_or(0) << 10
}

/// Bytes of memory of this machine, or of the control group if that may take less.
pub(crate) fn machine_memory() -> u64 {
    let machine = kibibytes("/proc/meminfo", "MemTotal:").map_or(u64::MAX, |found| found << 10);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // Its own bound, or that of any group around it.
    let around = std::path::Path::new(group).ancestors();
    let bounds = around.filter_map(|group| {
        let group = group.strip_prefix("/").unwrap_or(group);
        let file = std::path::Path::new("/sys/fs/cgroup").join(group).join("memory.max");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    bounds.fold(machine, u64::min)
}

fn kibibytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
