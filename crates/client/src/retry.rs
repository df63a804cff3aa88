//! Retries: whether a call that failed is attempted again, and when.
//!
//! What may be repeated is said by the contract alone. How often is kept in bounds by a
//! budget, since retries of everybody are what keeps a busy service down (gRFC A6).

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use http::HeaderMap;
use proto::Idempotency;
use tonic::Code;

use crate::random::Random;

/// The most attempts at one call, the first included. gRFC A6 allows up to five.
const MAX_ATTEMPTS: u32 = 4;

/// The longest wait before the first retry, doubled for each further one.
const BASE_BACK_OFF: Duration = Duration::from_millis(50);

/// The longest wait before any retry.
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

/// Where a server says when to come back, in milliseconds (gRFC A6).
const PUSH_BACK: &str = "grpc-retry-pushback-ms";

/// The retries that the calls of a channel have earned, so that an outage does not
/// multiply them: a token bucket, as in gRFC A6 and Finagle's `RetryBudget`.
///
/// Each call earns a tenth of a retry, which is A6's ratio, and what keeps attempts below
/// 1.2 × calls. At most 100 are kept, so that a hundred calls that were in flight to a
/// replica when it died can all be repeated.
#[derive(Debug)]
pub(crate) struct Budget {
    tenths: AtomicU32,
}

impl Budget {
    const RETRY: u32 = 10;
    const FULL: u32 = 100 * Self::RETRY;
    const INITIAL: u32 = 10 * Self::RETRY;

    pub(crate) fn new() -> Self {
        Self { tenths: AtomicU32::new(Self::INITIAL) }
    }

    /// Counts a call.
    pub(crate) fn earn(&self) {
        self.update(|tenths| (tenths < Self::FULL).then_some(tenths + 1));
    }

    /// Takes a retry, if there is one.
    fn spend(&self) -> bool {
        self.update(|tenths| tenths.checked_sub(Self::RETRY))
    }

    /// The number of retries that there are.
    pub(crate) fn retries(&self) -> u32 {
        self.tenths.load(Ordering::Relaxed) / Self::RETRY
    }

    fn update(&self, change: impl Fn(u32) -> Option<u32>) -> bool {
        self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

/// What a server says about coming back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushBack {
    /// After so long, and not sooner.
    After(Duration),
    /// Not at all.
    Never,
}

/// What the headers or trailers of a response say about coming back; what cannot be read
/// says not to (gRFC A6).
pub(crate) fn push_back(metadata: &HeaderMap) -> Option<PushBack> {
    let value = metadata.get(PUSH_BACK)?;
    let millis = value.to_str().ok().and_then(|text| text.parse::<u32>().ok());
    Some(
        millis.map_or(PushBack::Never, |millis| {
            PushBack::After(Duration::from_millis(millis.into()))
        }),
    )
}

/// An attempt that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// The status that it ended with.
    pub(crate) code: Code,
    /// What the server said about coming back.
    pub(crate) push_back: Option<PushBack>,
    /// The number of attempts so far, this one included.
    pub(crate) attempts: u32,
    /// The time left until the deadline of the call, if it has one.
    pub(crate) remaining: Option<Duration>,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Try again after so long.
    Retry(Duration),
    /// Let the caller know.
    GiveUp,
}

/// Decides whether a call of this idempotency is attempted again, which is then paid for.
pub(crate) fn decide(
    idempotency: Idempotency,
    failure: &Failure,
    budget: &Budget,
    random: &Random,
) -> Decision {
    let Failure { code, push_back, attempts, remaining } = *failure;
    if idempotency == Idempotency::Unknown || attempts >= MAX_ATTEMPTS {
        return Decision::GiveUp;
    }
    let wait = match (code, push_back) {
        (Code::Unavailable | Code::ResourceExhausted, Some(PushBack::After(wait))) => wait,
        (Code::Unavailable, None) => back_off(attempts.saturating_sub(1), random),
        _ => return Decision::GiveUp,
    };
    if remaining.is_some_and(|remaining| remaining <= wait) || !budget.spend() {
        return Decision::GiveUp;
    }
    Decision::Retry(wait)
}

/// How long to wait before the retry after so many others: any time up to a limit that
/// doubles (gRFC A6), since callers that failed together must not return together.
fn back_off(retries: u32, random: &Random) -> Duration {
    let limit = BASE_BACK_OFF.saturating_mul(2_u32.saturating_pow(retries)).min(MAX_BACK_OFF);
    limit.mul_f64(random.unit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const FIRST: Failure =
        Failure { code: Code::Unavailable, push_back: None, attempts: 1, remaining: None };

    fn retries(idempotency: Idempotency, failure: &Failure) -> bool {
        let decision = decide(idempotency, failure, &Budget::new(), &Random::new(1));
        decision != Decision::GiveUp
    }

    #[test]
    fn what_the_contract_allows_is_retried_and_nothing_else() {
        assert!(retries(Idempotency::Idempotent, &FIRST));
        assert!(retries(Idempotency::NoSideEffects, &FIRST));
        assert!(!retries(Idempotency::Unknown, &FIRST));
    }

    #[test]
    fn a_failure_that_may_pass_is_retried() {
        let soon = Some(PushBack::After(Duration::from_millis(7)));
        for (code, push_back, expected) in [
            (Code::Unavailable, None, true),
            (Code::Unavailable, soon, true),
            (Code::Unavailable, Some(PushBack::Never), false),
            (Code::ResourceExhausted, None, false),
            (Code::ResourceExhausted, soon, true),
            (Code::ResourceExhausted, Some(PushBack::Never), false),
            (Code::Ok, soon, false),
            (Code::DeadlineExceeded, soon, false),
            (Code::Internal, soon, false),
            (Code::Aborted, soon, false),
            (Code::Unknown, None, false),
        ] {
            let failure = Failure { code, push_back, ..FIRST };
            let retried = retries(Idempotency::Idempotent, &failure);
            assert_eq!(retried, expected, "{code:?} {push_back:?}");
        }
    }

    #[test]
    fn a_call_is_attempted_four_times_at_most() {
        let attempts = (1..9).find(|attempts| {
            !retries(Idempotency::Idempotent, &Failure { attempts: *attempts, ..FIRST })
        });
        assert_eq!(attempts, Some(4));
    }

    #[test]
    fn the_wait_is_what_the_server_asks_for_and_ends_before_the_deadline() {
        let decide = |push_back, remaining| {
            let failure = Failure {
                push_back: Some(PushBack::After(Duration::from_millis(push_back))),
                remaining: Some(Duration::from_millis(remaining)),
                ..FIRST
            };
            decide(Idempotency::Idempotent, &failure, &Budget::new(), &Random::new(1))
        };
        assert_eq!(decide(5_000, 5_001), Decision::Retry(Duration::from_secs(5)));
        assert_eq!(decide(5_000, 5_000), Decision::GiveUp);
        assert_eq!(decide(0, 1), Decision::Retry(Duration::ZERO));
        assert_eq!(decide(0, 0), Decision::GiveUp);
    }

    #[test]
    fn a_push_back_that_cannot_be_read_says_never() {
        for (value, expected) in [
            ("0", PushBack::After(Duration::ZERO)),
            ("1500", PushBack::After(Duration::from_millis(1_500))),
            ("-1", PushBack::Never),
            ("", PushBack::Never),
            ("1s", PushBack::Never),
            ("1.5", PushBack::Never),
            ("99999999999", PushBack::Never),
        ] {
            let metadata =
                HeaderMap::from_iter([(PUSH_BACK.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(push_back(&metadata), Some(expected), "{value}");
        }
        assert_eq!(push_back(&HeaderMap::<HeaderValue>::new()), None);
    }

    #[test]
    fn a_hundred_calls_in_flight_can_be_repeated_after_a_thousand_that_went_well() {
        let budget = Budget::new();
        (0..1_000).for_each(|_| budget.earn());
        assert_eq!(budget.retries(), 100);
        let retried = (0..200).filter(|_| {
            decide(Idempotency::Idempotent, &FIRST, &budget, &Random::new(1)) != Decision::GiveUp
        });
        assert_eq!((retried.count(), budget.retries()), (100, 0));
    }

    #[test]
    fn what_is_not_retried_costs_nothing() {
        let budget = Budget::new();
        for failure in [
            Failure { code: Code::Internal, ..FIRST },
            Failure { attempts: MAX_ATTEMPTS, ..FIRST },
            Failure { remaining: Some(Duration::ZERO), ..FIRST },
        ] {
            decide(Idempotency::Idempotent, &failure, &budget, &Random::new(1));
        }
        assert_eq!(budget.retries(), 10);
    }

    proptest! {
        #[test]
        fn an_outage_makes_a_tenth_more_attempts_and_ten(calls in 1_u32..2_000, seed: u64) {
            let (budget, random) = (Budget::new(), Random::new(seed));
            let mut attempts = 0;
            for _ in 0..calls {
                budget.earn();
                let mut failure = Failure { attempts: 0, ..FIRST };
                loop {
                    (attempts, failure.attempts) = (attempts + 1, failure.attempts + 1);
                    if decide(Idempotency::Idempotent, &failure, &budget, &random)
                        == Decision::GiveUp
                    {
                        break;
                    }
                }
            }
            prop_assert!(10 * attempts <= 11 * calls + 100, "{attempts} attempts");
        }

        #[test]
        fn a_back_off_is_below_its_limit(retries: u32, seed: u64) {
            let wait = back_off(retries, &Random::new(seed));
            prop_assert!(wait < MAX_BACK_OFF);
            prop_assert!(retries > 0 || wait < BASE_BACK_OFF);
        }
    }
}
