//! How many connections there may be, and which one gives way to a newcomer: whoever
//! opens thousands and says nothing must not keep callers out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// As many callers as a replica may have: dozens of replicas of each of dozens of
/// callers, with four connections each.
const MOST_CALLERS: usize = 10_000;
/// As many as arrive in [`SHORTEST_STAY`] at 10,000 a second, which is what can be accepted.
const MOST_HALF_OPEN: usize = 1024;
/// How long a connection may shake hands before it gives way, which a handshake takes on
/// a busy machine. Newcomers wait for it where the operating system keeps them.
const SHORTEST_STAY: Duration = Duration::from_millis(100);
/// The kubelet has a connection or two open at a time.
const MOST_PROBES: usize = 128;
/// The least that is left to the database, to outgoing connections and to files; of
/// many descriptors it is a quarter.
const RESERVED_DESCRIPTORS: usize = 64;
/// As many descriptors as the limits above can make use of; macOS gives no more than
/// the second.
const USEFUL_DESCRIPTORS: [u64; 2] = [16_384, 10_240];

/// How many connections a port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Those that have not shaken hands yet.
    pub(crate) half_open: usize,
    /// All of them.
    pub(crate) total: usize,
}

impl Limits {
    /// What the limit of this process on descriptors allows to callers, and to probes.
    pub(crate) fn of_process() -> (Self, Self) {
        let descriptors = getrlimit(Resource::Nofile).current;
        Self::within(descriptors.and_then(|it| it.try_into().ok()).unwrap_or(usize::MAX))
    }

    fn within(descriptors: usize) -> (Self, Self) {
        let available = descriptors.saturating_sub((descriptors / 4).max(RESERVED_DESCRIPTORS));
        let probes = (available / 4).clamp(1, MOST_PROBES);
        let callers = available.saturating_sub(probes).clamp(1, MOST_CALLERS);
        (
            Self { half_open: callers.min(MOST_HALF_OPEN), total: callers },
            Self { half_open: probes, total: probes },
        )
    }
}

/// Lets this process have as many descriptors as it may and can use. What a shell or a
/// container sets is low for the sake of programs that use select(2), as none here does.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    for useful in USEFUL_DESCRIPTORS {
        let raised = maximum.map_or(useful, |maximum| maximum.min(useful));
        // What cannot be raised is enough for fewer connections.
        if current.is_none_or(|current| current >= raised)
            || setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok()
        {
            return;
        }
    }
}

/// The places that the connections of a port have.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Oldest first.
    half_open: BTreeMap<u64, HalfOpen>,
    next: u64,
    kept: usize,
}

#[derive(Debug)]
struct HalfOpen {
    since: Instant,
    evicted: CancellationToken,
}

impl Slots {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared { limits, taken: Mutex::default() }))
    }

    /// A slot for a newcomer, if one is free.
    pub(crate) fn take(&self) -> Option<Slot> {
        let mut taken = self.0.taken();
        if taken.are_full(self.0.limits) {
            return None;
        }
        let (number, evicted) = (taken.next, CancellationToken::new());
        taken.next += 1;
        taken
            .half_open
            .insert(number, HalfOpen { since: Instant::now(), evicted: evicted.clone() });
        Some(Slot { shared: Arc::clone(&self.0), number, evicted, is_kept: false })
    }

    /// Whether the next newcomer finds none.
    pub(crate) fn are_full(&self) -> bool {
        self.0.taken().are_full(self.0.limits)
    }

    /// Makes room for a newcomer if there is none: has the oldest half-open connection, if
    /// there is one, give way when it has had its time.
    pub(crate) async fn make_room(&self) {
        let oldest = self.0.taken().half_open.values().next().map(|oldest| oldest.since);
        if let Some(since) = oldest {
            sleep_until(since + SHORTEST_STAY).await;
        }
        if self.are_full() {
            self.evict_oldest();
        }
    }

    /// Takes the slot of the oldest half-open connection away, if there is one.
    pub(crate) fn evict_oldest(&self) {
        if let Some((_, oldest)) = self.0.taken().half_open.pop_first() {
            oldest.evicted.cancel();
        }
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn are_full(&self, limits: Limits) -> bool {
        let half_open = self.half_open.len();
        half_open >= limits.half_open || half_open + self.kept >= limits.total
    }
}

/// The place of one connection, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    number: u64,
    evicted: CancellationToken,
    is_kept: bool,
}

impl Slot {
    /// Cancelled when a newcomer needs the slot.
    pub(crate) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    /// The connection is half-open no more, and gives way to nobody.
    pub(crate) fn keep(&mut self) {
        let mut taken = self.shared.taken();
        if taken.half_open.remove(&self.number).is_some() {
            taken.kept += 1;
            self.is_kept = true;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.shared.taken();
        if self.is_kept {
            taken.kept -= 1;
        } else {
            taken.half_open.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_half_open_connection_gives_way_and_an_open_one_never_does() {
        let slots = Slots::new(Limits { half_open: 2, total: 3 });
        let (mut open, oldest, newer) =
            (slots.take().unwrap(), slots.take().unwrap(), slots.take());
        assert!(newer.is_none(), "two are half-open");
        open.keep();
        let newer = slots.take().unwrap();
        assert!(slots.take().is_none(), "all three are taken");

        slots.evict_oldest();
        assert!(oldest.evicted().is_cancelled() && !newer.evicted().is_cancelled());
        let newest = slots.take().unwrap();
        // One that was taken from its slot gets no other, and frees none when it goes.
        let mut oldest = oldest;
        oldest.keep();
        drop(oldest);
        assert!(slots.are_full());

        for mut slot in [newer, newest] {
            slot.keep();
            // Whoever keeps his slot for good is in nobody's way here.
            std::mem::forget(slot);
        }
        slots.evict_oldest();
        assert!(slots.take().is_none(), "nobody gives way");
        drop(open);
        assert!(slots.take().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_just_come_has_time_to_shake_hands() {
        let slots = Slots::new(Limits { half_open: 1, total: 1 });
        let first = slots.take().unwrap();
        let begun = Instant::now();
        slots.make_room().await;
        assert!(first.evicted().is_cancelled() && begun.elapsed() >= SHORTEST_STAY);
        let mut second = slots.take().unwrap();
        tokio::join!(slots.make_room(), async { second.keep() });
        assert!(!second.evicted().is_cancelled() && slots.take().is_none());
    }

    #[test]
    fn the_limits_leave_descriptors_for_everything_else() {
        let limits = |descriptors| {
            let (callers, probes) = Limits::within(descriptors);
            assert!(callers.half_open <= callers.total && probes.half_open == probes.total);
            (callers.total, probes.total)
        };
        assert_eq!(limits(128), (48, 16));
        assert_eq!(limits(256), (144, 48));
        assert_eq!(limits(1024), (640, 128));
        assert_eq!(limits(USEFUL_DESCRIPTORS[0].try_into().unwrap()), (10_000, 128));
        assert_eq!(limits(usize::MAX), (10_000, 128));
        assert_eq!(limits(0), (1, 1));
    }
}
