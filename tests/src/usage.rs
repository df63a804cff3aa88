//! What a process takes of the machine, where the system tells: on Linux.

use std::{fs, time::Duration};

/// How often the clock ticks by which the system counts CPU time: 100 times a second
/// wherever Linux runs, whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);

/// What a process takes of memory, CPU and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in RAM, now.
    pub resident_bytes: u64,
    /// The most bytes in RAM there ever were, or since they were last forgotten.
    pub peak_bytes: u64,
    /// Time on CPUs so far.
    pub cpu_time: Duration,
    /// Bytes read from files so far.
    pub read_bytes: u64,
    /// Files and sockets that are open now.
    pub descriptors: u64,
}

impl Usage {
    /// The usage of a process; none where the system does not tell.
    pub fn of(process_id: u32) -> Option<Self> {
        let read = |file| fs::read_to_string(format!("/proc/{process_id}/{file}")).ok();
        let (status, stat, io) = (read("status")?, read("stat")?, read("io")?);
        Some(Self {
            resident_bytes: number(&status, "VmRSS:")? * 1024,
            peak_bytes: number(&status, "VmHWM:")? * 1024,
            cpu_time: cpu_time(&stat)?,
            read_bytes: number(&io, "rchar:")?,
            descriptors: fs::read_dir(format!("/proc/{process_id}/fd")).ok()?.count() as u64,
        })
    }
}

/// The sum of `utime` and `stime`, which stand in the twelfth and thirteenth place after
/// the name of the program, in parentheses. See proc_pid_stat(5).
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Option<Vec<u32>> =
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse().ok()).collect();
    Some(TICK * ticks?.into_iter().sum())
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
