//! The deadline of a call, handed on to the calls made meanwhile, and
//! `grpc-timeout`, which carries it over the wire.

use std::{future::Future, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;

/// The header that carries what remains of a deadline.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The longest timeout that is told apart from a longer one.
const MAX_TIMEOUT: Duration = Duration::from_hours(365 * 24);

/// The units of `grpc-timeout` and their nanoseconds, finest first.
const UNITS: [(char, u64); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60 * 1_000_000_000),
    ('H', 3_600 * 1_000_000_000),
];

/// The largest number in a `grpc-timeout`, which has at most eight digits.
const MAX_DIGITS: u64 = 99_999_999;

/// The instant at which a call is over, whether answered or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline so long from now; a timeout of more than a year is a year.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout.min(MAX_TIMEOUT))
    }

    /// The deadline at this instant.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The instant of the deadline.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// The time left; zero once the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether no time is left.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

tokio::task_local! {
    static CURRENT: Option<Deadline>;
}

/// Runs `work` under a deadline that every call made in it inherits.
///
/// Does not end `work` itself. A task spawned in it inherits nothing.
pub async fn scope<F: Future>(deadline: Option<Deadline>, work: F) -> F::Output {
    CURRENT.scope(deadline, work).await
}

/// Runs `work` under a deadline, as [`scope`] does, where nothing is awaited: within
/// one poll of a stream.
pub fn sync_scope<T>(deadline: Option<Deadline>, work: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(deadline, work)
}

/// The deadline that the current task works under.
pub fn current() -> Option<Deadline> {
    CURRENT.try_with(|deadline| *deadline).ok().flatten()
}

/// Why a `grpc-timeout` cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("grpc-timeout is {0:?}; send 1 to 8 digits and a unit (H, M, S, m, u or n)")]
pub struct InvalidTimeout(String);

/// The timeout that a request states, if it states one.
pub fn requested_timeout(headers: &HeaderMap) -> Result<Option<Duration>, InvalidTimeout> {
    headers
        .get(GRPC_TIMEOUT)
        .map(|value| parse_timeout(&String::from_utf8_lossy(value.as_bytes())))
        .transpose()
}

/// Reads the value of a `grpc-timeout`.
pub fn parse_timeout(text: &str) -> Result<Duration, InvalidTimeout> {
    // Enough to recognize it by.
    let invalid = || InvalidTimeout(text.chars().take(16).collect());
    let unit = text.chars().next_back().ok_or_else(invalid)?;
    let digits = text.strip_suffix(unit).ok_or_else(invalid)?;
    let (_, nanos) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let number: u32 = digits.parse().map_err(|_| invalid())?;
    // Hours in nanoseconds overflow, so whole seconds are counted as seconds.
    Ok(match nanos / 1_000_000_000 {
        0 => Duration::from_nanos(u64::from(number) * nanos),
        seconds => Duration::from_secs(u64::from(number) * seconds),
    })
}

/// Writes the value of a `grpc-timeout`, in the finest unit that it fits.
///
/// Rounds down, so that a peer never believes in more time than there is; the
/// loss is below one in a million.
pub fn format_timeout(timeout: Duration) -> String {
    let nanos = timeout.as_nanos();
    UNITS
        .into_iter()
        .map(|(unit, size)| (nanos / u128::from(size), unit))
        .find(|(number, _)| *number <= u128::from(MAX_DIGITS))
        .map_or_else(|| format!("{MAX_DIGITS}H"), |(number, unit)| format!("{number}{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("0n", Duration::ZERO),
            ("7n", Duration::from_nanos(7)),
            ("7u", Duration::from_micros(7)),
            ("7m", Duration::from_millis(7)),
            ("7S", Duration::from_secs(7)),
            ("7M", Duration::from_mins(7)),
            ("00000007H", Duration::from_hours(7)),
            ("99999999H", Duration::from_hours(99_999_999)),
        ] {
            assert_eq!(parse_timeout(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_timeout_is_refused() {
        for text in
            ["", "S", "1", "1s", "-1S", "+1S", "1.5S", " 1S", "1 S", "123456789n", "1é", "é"]
        {
            assert_eq!(parse_timeout(text), Err(InvalidTimeout(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn the_finest_unit_that_fits_is_written() {
        for (timeout, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_001), "100000u"),
            (Duration::from_secs(2), "2000000u"),
            (Duration::from_hours(1), "3600000m"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(format_timeout(timeout), expected);
        }
    }

    proptest! {
        #[test]
        fn writing_a_timeout_never_lengthens_it_and_hardly_shortens_it(
            seconds in 0..=u64::from(u32::MAX),
            nanos in 0..1_000_000_000_u32,
        ) {
            let timeout = Duration::new(seconds, nanos);
            let read = parse_timeout(&format_timeout(timeout)).unwrap();
            prop_assert!(read <= timeout);
            prop_assert!(timeout.saturating_sub(read) <= timeout / 1_000_000);
        }

        #[test]
        fn whatever_is_sent_is_a_timeout_of_the_form_or_refused(
            text in r"[0-9]{0,10}[HMSmunx]?|\PC{0,10}",
        ) {
            let digits = text.strip_suffix(['H', 'M', 'S', 'm', 'u', 'n']);
            let fits = digits.is_some_and(|digits| {
                (1..=8).contains(&digits.len()) && digits.bytes().all(|it| it.is_ascii_digit())
            });
            prop_assert_eq!(parse_timeout(&text).is_ok(), fits);
        }
    }

    #[tokio::test]
    async fn a_deadline_is_seen_in_its_scope_alone() {
        let deadline = Deadline::after(Duration::from_secs(1));
        assert_eq!(current(), None);
        assert_eq!(scope(Some(deadline), async { current() }).await, Some(deadline));
        assert_eq!(scope(Some(deadline), scope(None, async { current() })).await, None);
        assert_eq!(current(), None);
    }
}
