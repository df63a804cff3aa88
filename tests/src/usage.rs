//! What a process takes of the machine, where the system tells: on Linux.

use std::fs;

/// What a process takes of memory and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in RAM, now.
    pub resident_bytes: u64,
    /// The most bytes in RAM there ever were, or since they were last forgotten.
    pub peak_bytes: u64,
    /// Bytes read from files so far.
    pub read_bytes: u64,
}

impl Usage {
    /// The usage of a process; none where the system does not tell.
    pub fn of(process_id: u32) -> Option<Self> {
        let read = |file| fs::read_to_string(format!("/proc/{process_id}/{file}")).ok();
        let (status, io) = (read("status")?, read("io")?);
        Some(Self {
            resident_bytes: number(&status, "VmRSS:")? * 1024,
            peak_bytes: number(&status, "VmHWM:")? * 1024,
            read_bytes: number(&io, "rchar:")?,
        })
    }
}

/// The number behind a name: `VmRSS:      1234 kB`, `rchar: 1234`.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Forgets the peak of a process, so that the next one shows. Does nothing where the
/// system tells of none.
pub fn forget_peak(process_id: u32) {
    // See proc_pid_clear_refs(5).
    let _ = fs::write(format!("/proc/{process_id}/clear_refs"), "5");
}
