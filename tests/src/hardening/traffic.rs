//! Calls that are sent on schedule, whatever becomes of those before: a caller who waits
//! for answers would not notice that they have become slow.

use std::{collections::BTreeMap, fmt, time::Duration};

use client::{Channel, Snapshot};
use futures::future::BoxFuture;
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, interval, timeout},
};
use tonic::Status;

use super::Verdict;

/// How long a condition may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many kinds of failures are shown.
const KINDS_SHOWN: usize = 3;

/// A call that can be sent.
pub(super) struct Call {
    /// Names the RPC.
    pub(super) rpc: &'static str,
    /// Whether the contract says that it may be repeated.
    pub(super) is_repeatable: bool,
    /// Sends it.
    pub(super) answer: BoxFuture<'static, Result<(), Status>>,
}

/// How far the traffic has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Calls that are open now.
    pub(super) open: usize,
    /// Calls that have ended.
    pub(super) ended: usize,
}

/// Calls under way, for as long as it is not ended.
pub(super) struct Traffic {
    progress: watch::Receiver<Progress>,
    stop: oneshot::Sender<()>,
    sending: JoinHandle<Tally>,
}

impl Traffic {
    /// Sends so many calls a second from now on.
    pub(super) fn begin(per_second: u32, next: impl FnMut() -> Call + Send + 'static) -> Self {
        let (report, progress) = watch::channel(Progress::default());
        let (stop, stopped) = oneshot::channel();
        let sending = tokio::spawn(send(per_second, next, report, stopped));
        Self { progress, stop, sending }
    }

    /// Waits until the traffic has come so far.
    pub(super) async fn wait_for(&self, condition: impl FnMut(&Progress) -> bool) {
        let mut progress = self.progress.clone();
        let reached = timeout(PATIENCE, progress.wait_for(condition)).await;
        reached.expect("it comes so far in time").expect("it goes on");
    }

    /// Waits until so many calls more have ended.
    pub(super) async fn wait_for_more(&self, calls: usize) {
        let before = self.progress.borrow().ended;
        self.wait_for(|progress| progress.ended >= before + calls).await;
    }

    /// Sends no more, waits for the answers, and tells what became of all calls.
    pub(super) async fn end(self) -> Tally {
        let _ = self.stop.send(());
        self.sending.await.expect("a call does not panic")
    }
}

async fn send(
    per_second: u32,
    mut next: impl FnMut() -> Call,
    report: watch::Sender<Progress>,
    mut stopped: oneshot::Receiver<()>,
) -> Tally {
    let mut tally = Tally::default();
    let mut open = JoinSet::new();
    let mut schedule = interval(Duration::from_secs(1) / per_second);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(ended) = open.join_next() => {
                tally.add(ended.expect("a call does not panic"));
                report.send_modify(|progress| {
                    progress.open -= 1;
                    progress.ended += 1;
                });
            }
            _ = schedule.tick() => {
                open.spawn(follow(next()));
                report.send_modify(|progress| progress.open += 1);
            }
        }
    }
    while let Some(ended) = open.join_next().await {
        tally.add(ended.expect("a call does not panic"));
    }
    tally
}

async fn follow(Call { rpc, is_repeatable, answer }: Call) -> Ended {
    let begun = Instant::now();
    let answer = answer.await;
    Ended { rpc, is_repeatable, begun, took: begun.elapsed(), answer }
}

/// What a channel did for the calls through it.
pub(super) fn effort(channel: &Channel) -> String {
    let Snapshot { calls, attempts, replays, .. } = channel.snapshot();
    format!("{attempts} attempts and {replays} replays for {calls} calls")
}

/// A call that has ended.
pub(super) struct Ended {
    rpc: &'static str,
    pub(super) is_repeatable: bool,
    pub(super) begun: Instant,
    took: Duration,
    answer: Result<(), Status>,
}

impl Ended {
    /// When it ended.
    pub(super) fn at(&self) -> Instant {
        self.begun + self.took
    }
}

/// What became of calls.
#[derive(Default)]
pub(super) struct Tally {
    sent: usize,
    slowest: Duration,
    /// Those that failed.
    pub(super) failed: Vec<Ended>,
}

impl Tally {
    fn add(&mut self, ended: Ended) {
        self.sent += 1;
        self.slowest = self.slowest.max(ended.took);
        if ended.answer.is_err() {
            self.failed.push(ended);
        }
    }

    /// That no call failed but those that may.
    pub(super) fn none_failed_but(mut self, may_fail: impl Fn(&Ended) -> bool) -> Verdict {
        let excused = self.failed.extract_if(.., |ended| may_fail(ended)).count();
        let excused = match excused {
            0 => String::new(),
            count => format!(", {count} failed that may"),
        };
        let found = format!("{self}{excused}");
        if self.failed.is_empty() { Ok(found) } else { Err(found) }
    }

    /// That no call failed.
    pub(super) fn none_failed(self) -> Verdict {
        self.none_failed_but(|_| false)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, slowest, failed } = self;
        let count = failed.len();
        write!(formatter, "{sent} calls, {count} failed, the slowest in {slowest:.0?}")?;
        let mut kinds = BTreeMap::<_, usize>::new();
        for Ended { rpc, answer, took, .. } in failed {
            let status = answer.as_ref().err().map(|status| (status.code(), status.message()));
            let (code, message) = status.unwrap_or((tonic::Code::Ok, ""));
            let seconds = took.as_secs();
            *kinds.entry(format!("{rpc} {code:?} after {seconds} s: {message}")).or_default() += 1;
        }
        for (kind, count) in kinds.iter().take(KINDS_SHOWN) {
            write!(formatter, "; {count} x {kind}")?;
        }
        match kinds.len().saturating_sub(KINDS_SHOWN) {
            0 => Ok(()),
            more => write!(formatter, "; and {more} kinds more"),
        }
    }
}
