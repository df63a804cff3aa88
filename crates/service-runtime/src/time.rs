//! Points in time and where they come from. Nothing in the suite asks the
//! operating system for the time but [`Clock::system`].

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{Rng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Microseconds since the Unix epoch, as databases store them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The time so many microseconds after the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The time after this one by `duration`, or the last time there is.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// The time before this one by `duration`, or the first time there is.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => time.fmt(formatter),
            Err(_) => write!(formatter, "{} µs", self.0),
        }
    }
}

/// Tells the time. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The clock of the operating system.
    pub fn system() -> Self {
        Self::new(|| {
            #[expect(clippy::disallowed_methods, reason = "this is where time comes from")]
            let now = SystemTime::now();
            let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timestamp::default().saturating_add(since_epoch)
        })
    }

    /// A clock that shows what `now` says, for tests.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Clock({})", self.now())
    }
}

/// Makes up identifiers and secrets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identifiers {
    clock: Clock,
    source: Arc<Mutex<Source>>,
}

#[derive(Debug)]
struct Source {
    random: StdRng,
    last: Uuid,
}

impl Identifiers {
    /// Identifiers of these sources of time and randomness.
    pub fn new(clock: Clock, random: StdRng) -> Self {
        Self { clock, source: Arc::new(Mutex::new(Source { random, last: Uuid::nil() })) }
    }

    /// Bytes that nobody can predict, for what must not be guessed.
    pub fn secret(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        source.random.fill_bytes(&mut bytes);
        bytes
    }

    /// A UUIDv7 (RFC 9562) that sorts after every other that this source has made,
    /// even in the same millisecond or when the clock was set back (§6.2).
    pub fn next(&self) -> Uuid {
        let millis = u64::try_from(self.clock.now().as_micros() / 1_000).unwrap_or_default();
        // A panic elsewhere leaves the source usable.
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 10];
        source.random.fill_bytes(&mut bytes);
        let fresh = uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid();
        let successor = Uuid::from_u128(source.last.as_u128() + 1);
        source.last = fresh.max(successor);
        source.last
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn identifiers_ascend_though_the_clock_stands_still_or_goes_back() {
        let micros = Arc::new(Mutex::new(2_000_000));
        let clock = Clock::new({
            let micros = Arc::clone(&micros);
            move || Timestamp::from_micros(*micros.lock().unwrap())
        });
        let identifiers = Identifiers::new(clock, StdRng::seed_from_u64(7));
        let mut made: Vec<_> = (0..1_000).map(|_| identifiers.next()).collect();
        *micros.lock().unwrap() = 1_000_000;
        made.extend((0..1_000).map(|_| identifiers.next()));
        assert!(made.is_sorted_by(|a, b| a < b));
        assert!(made.iter().all(|id| id.get_version_num() == 7));
    }
}
