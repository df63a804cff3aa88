//! How much memory a process takes, where the system tells: on Linux.

use std::fs;

/// The memory that a process has in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes, now.
    pub resident_bytes: u64,
    /// The most bytes there ever were, or since they were last forgotten.
    pub peak_bytes: u64,
}

/// The memory of a process; none where the system does not tell.
pub fn of(process_id: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim_end_matches("kB").trim().parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some(Memory { resident_bytes: bytes("VmRSS:")?, peak_bytes: bytes("VmHWM:")? })
}

/// Forgets the peak of a process, so that the next one shows. Does nothing where the
/// system tells of none.
pub fn forget_peak(process_id: u32) {
    // See proc_pid_clear_refs(5).
    let _ = fs::write(format!("/proc/{process_id}/clear_refs"), "5");
}
