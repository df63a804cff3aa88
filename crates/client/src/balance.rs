//! Balancing: which endpoint a call goes to, and what is known of how busy each is.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::random::Random;

/// How long what an endpoint did is remembered: after this time it counts for a third.
/// Finagle and Linkerd remember for 10 s; with half of it, an endpoint that failed is
/// tried again after 35 s even if the others answer within a millisecond.
const DECAY: Duration = Duration::from_secs(5);

/// What a failure counts as at least: far more than any healthy call, so that an endpoint
/// that fails at once is not taken for a fast one.
const FAILURE_PENALTY: Duration = Duration::from_secs(1);

/// Endpoints faster than this are as fast as each other: the difference is the
/// scheduler's. It keeps one that has been idle for long from costing nothing, and thus
/// from being given everything.
const LATENCY_FLOOR: Duration = Duration::from_millis(1);

/// How the endpoint of a call is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The better of two random ones by the latency of their calls and the number of
    /// those in flight ([Mitzenmacher 2001], as in Finagle, Linkerd and Envoy).
    ///
    /// [Mitzenmacher 2001]: https://doi.org/10.1109/71.963420
    #[default]
    PowerOfTwoChoices,
    /// Each in turn, however it does.
    RoundRobin,
}

/// Chooses endpoints.
#[derive(Debug)]
pub(crate) struct Picker {
    balance: Balance,
    random: Random,
    turn: AtomicUsize,
}

impl Picker {
    /// Takes its turns from a random one on, so that many callers of the same endpoints
    /// don't go to the first together.
    pub(crate) fn new(balance: Balance, random: Random) -> Self {
        let turn = AtomicUsize::new(random.below(1 << 16));
        Self { balance, random, turn }
    }

    /// One of the candidates; none if there is none.
    ///
    /// One to `avoid`, where the last attempt failed, is chosen only if there is no other.
    pub(crate) fn pick<'a, T>(
        &self,
        candidates: &'a [T],
        cost: impl Fn(&T) -> f64,
        avoid: impl Fn(&T) -> bool,
    ) -> Option<&'a T> {
        let willing = || candidates.iter().filter(|candidate| !avoid(candidate));
        match willing().count() {
            0 => self.choose(candidates.len(), || candidates.iter(), cost),
            count => self.choose(count, willing, cost),
        }
    }

    fn choose<'a, T: 'a, I: Iterator<Item = &'a T>>(
        &self,
        count: usize,
        candidates: impl Fn() -> I,
        cost: impl Fn(&T) -> f64,
    ) -> Option<&'a T> {
        let nth = |index| candidates().nth(index);
        match (self.balance, count) {
            (_, 0 | 1) => nth(0),
            (Balance::RoundRobin, _) => nth(self.turn.fetch_add(1, Ordering::Relaxed) % count),
            (Balance::PowerOfTwoChoices, _) => {
                let first = self.random.below(count);
                // Any but the first, each as likely as the others.
                let second = (first + 1 + self.random.below(count - 1)) % count;
                let (first, second) = (nth(first)?, nth(second)?);
                Some(if cost(second) < cost(first) { second } else { first })
            }
        }
    }
}

/// How busy an endpoint is: the calls in flight, and a moving average of their latency
/// that follows a rise at once and a fall slowly ("peak EWMA", as in Finagle and Linkerd).
#[derive(Debug)]
pub(crate) struct Load {
    pending: AtomicU32,
    latency: Mutex<Latency>,
}

/// What an average was at some instant; it decays from there.
#[derive(Clone, Copy, Debug)]
struct Latency {
    seconds: f64,
    at: Instant,
}

impl Latency {
    /// What remains now of what was known then.
    fn weight(self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The endpoint answered, whatever it said.
    Answered,
    /// The endpoint did not do its work.
    Failed,
}

impl Load {
    /// The load of a new endpoint, which took so long to connect to: the best guess
    /// before the first call.
    pub(crate) fn new(first: Duration) -> Self {
        let latency = Latency { seconds: first.as_secs_f64(), at: Instant::now() };
        Self { pending: AtomicU32::new(0), latency: Mutex::new(latency) }
    }

    /// What one more call would cost, in seconds of waiting for all in flight.
    pub(crate) fn cost(&self) -> f64 {
        let latency = self.latency().max(LATENCY_FLOOR).as_secs_f64();
        latency * (f64::from(self.pending()) + 1.0)
    }

    /// The latency of its calls, as far as it still counts.
    pub(crate) fn latency(&self) -> Duration {
        let latency = *self.lock();
        Duration::from_secs_f64(latency.seconds * latency.weight(Instant::now()))
    }

    /// The number of calls in flight.
    pub(crate) fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Counts an attempt as in flight until it ends.
    pub(crate) fn begin(self: &Arc<Self>) -> Pending {
        self.pending.fetch_add(1, Ordering::Relaxed);
        Pending { load: Arc::clone(self), began: Instant::now(), outcome: None }
    }

    /// Forgets how long calls took.
    pub(crate) fn reset(&self) {
        *self.lock() = Latency { seconds: 0.0, at: Instant::now() };
    }

    fn end(&self, elapsed: Duration, outcome: Option<Outcome>) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        let sample = match outcome {
            Some(Outcome::Failed) => elapsed.max(FAILURE_PENALTY),
            Some(Outcome::Answered) | None => elapsed,
        };
        let (sample, now) = (sample.as_secs_f64(), Instant::now());
        let mut latency = self.lock();
        let seconds = if sample > latency.seconds {
            sample
        } else if outcome.is_some() {
            let weight = latency.weight(now);
            latency.seconds * weight + sample * (1.0 - weight)
        } else {
            // That it was given up early says nothing of how long it would have taken.
            return;
        };
        *latency = Latency { seconds, at: now };
    }

    fn lock(&self) -> MutexGuard<'_, Latency> {
        // A number is never half written.
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt in flight. Dropped without an outcome, it was given up by its caller, which
/// counts against the endpoint only if it took longer than usual: a deadline on a stalled
/// endpoint must make it look slow.
#[derive(Debug)]
#[must_use = "an attempt that is dropped is over"]
pub(crate) struct Pending {
    load: Arc<Load>,
    began: Instant,
    outcome: Option<Outcome>,
}

impl Pending {
    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.load.end(self.began.elapsed(), self.outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use tokio::{
        runtime,
        task::JoinSet,
        time::{advance, sleep},
    };

    use super::*;

    const CONNECTED_AFTER: Duration = Duration::from_millis(2);

    /// An endpoint that takes as long as it is told to.
    struct Endpoint {
        load: Arc<Load>,
        latency: Duration,
        outcome: Outcome,
        chosen: Cell<u32>,
    }

    impl Endpoint {
        fn healthy(latency: Duration) -> Self {
            let load = Arc::new(Load::new(CONNECTED_AFTER));
            Self { load, latency, outcome: Outcome::Answered, chosen: Cell::new(0) }
        }

        fn failing_at_once() -> Self {
            Self { outcome: Outcome::Failed, ..Self::healthy(Duration::from_micros(100)) }
        }

        /// The part of all calls that it got since it was asked last, in percent.
        fn share(&self, calls: u32) -> u32 {
            self.chosen.take() * 100 / calls
        }
    }

    fn picker(balance: Balance) -> Picker {
        let seed = 11;
        println!("seed {seed}");
        Picker::new(balance, Random::new(seed))
    }

    /// Makes so many calls, one every 2 ms, whatever becomes of those before.
    async fn drive(picker: &Picker, endpoints: &[Endpoint], calls: u32) {
        let mut in_flight = JoinSet::new();
        for _ in 0..calls {
            let endpoint = picker.pick(endpoints, |it| it.load.cost(), |_| false).unwrap();
            endpoint.chosen.set(endpoint.chosen.get() + 1);
            let (pending, latency, outcome) =
                (endpoint.load.begin(), endpoint.latency, endpoint.outcome);
            in_flight.spawn(async move {
                sleep(latency).await;
                pending.end(outcome);
            });
            sleep(Duration::from_millis(2)).await;
        }
        in_flight.join_all().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_endpoint_gets_a_small_share() {
        let mut endpoints = [5, 5, 5, 200].map(|it| Endpoint::healthy(Duration::from_millis(it)));
        let picker = picker(Balance::default());
        drive(&picker, &endpoints, 2_000).await;
        assert!((0..=2).contains(&endpoints[3].share(2_000)));
        for endpoint in &endpoints[..3] {
            assert!((28..=38).contains(&endpoint.share(2_000)));
        }

        endpoints[3].latency = Duration::from_millis(5);
        drive(&picker, &endpoints, 15_000).await;
        endpoints[3].chosen.take();
        drive(&picker, &endpoints, 2_000).await;
        assert!((15..=35).contains(&endpoints[3].share(2_000)), "it is fast again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_fails_at_once_gets_next_to_nothing_until_it_is_healed() {
        let mut endpoints = [3, 3, 3].map(|it| Endpoint::healthy(Duration::from_millis(it)));
        endpoints[0] = Endpoint::failing_at_once();
        let picker = picker(Balance::default());
        drive(&picker, &endpoints, 10_000).await;
        assert!(endpoints[0].chosen.take() <= 3, "once, and then once in a while");

        endpoints[0].outcome = Outcome::Answered;
        drive(&picker, &endpoints, 20_000).await;
        endpoints[0].chosen.take();
        drive(&picker, &endpoints, 2_000).await;
        assert!(endpoints[0].share(2_000) >= 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_endpoint_gets_no_more_than_twice_its_part_before_it_has_answered() {
        let busy = || Load::new(Duration::from_millis(30));
        let loads = [busy(), busy(), busy(), Load::new(CONNECTED_AFTER)].map(Arc::new);
        let picker = picker(Balance::default());
        let in_flight: Vec<_> = (0..400)
            .map(|_| picker.pick(&loads, |it| it.cost(), |_| false).unwrap().begin())
            .collect();
        let at_the_new_one = loads[3].pending();
        assert!((100..=230).contains(&at_the_new_one), "{at_the_new_one}");
        drop(in_flight);
        assert!(loads.iter().all(|load| load.pending() == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_that_were_idle_are_given_calls_alike() {
        let endpoints = [1, 20].map(|it| Endpoint::healthy(Duration::from_millis(it)));
        let picker = picker(Balance::default());
        drive(&picker, &endpoints, 100).await;
        sleep(Duration::from_mins(1)).await;
        let _in_flight: Vec<_> = (0..100)
            .map(|_| picker.pick(&endpoints, |it| it.load.cost(), |_| false).unwrap().load.begin())
            .collect();
        assert_eq!(endpoints.each_ref().map(|it| it.load.pending()), [50, 50]);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_even_however_an_endpoint_does() {
        let mut endpoints = [1, 1, 50, 1].map(|it| Endpoint::healthy(Duration::from_millis(it)));
        endpoints[1] = Endpoint::failing_at_once();
        drive(&picker(Balance::RoundRobin), &endpoints, 400).await;
        assert!(endpoints.iter().all(|endpoint| endpoint.chosen.get() == 100));
    }

    #[test]
    fn the_endpoint_of_the_last_attempt_is_avoided_unless_there_is_no_other() {
        for picker in [Balance::PowerOfTwoChoices, Balance::RoundRobin].map(picker) {
            // The cheapest of all failed.
            let pick = |candidates: &[u8]| {
                picker.pick(candidates, |it| f64::from(*it), |it| *it == 0).copied()
            };
            assert_eq!(pick(&[]), None);
            assert_eq!(pick(&[0]), Some(0));
            assert_eq!(pick(&[7]), Some(7));
            for _ in 0..100 {
                assert_eq!(pick(&[0, 7]), Some(7));
                assert_ne!(pick(&[7, 0, 8]), Some(0));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_given_up_counts_if_it_took_longer_than_usual() {
        let load = Arc::new(Load::new(Duration::from_millis(100)));
        let give_up_after = async |patience| {
            advance(DECAY).await;
            let pending = load.begin();
            advance(patience).await;
            drop(pending);
            load.latency().as_millis()
        };
        assert_eq!(give_up_after(Duration::from_millis(30)).await, 36, "as if never called");
        assert_eq!(give_up_after(Duration::from_millis(500)).await, 500);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rise_counts_at_once_and_a_fall_slowly() {
        let load = Arc::new(Load::new(Duration::from_millis(10)));
        let answer_after = async |latency| {
            let pending = load.begin();
            advance(latency).await;
            pending.end(Outcome::Answered);
            load.latency().as_millis()
        };
        assert_eq!(answer_after(Duration::from_millis(100)).await, 100);
        assert_eq!(answer_after(Duration::from_millis(20)).await, 99);
        advance(DECAY).await;
        assert_eq!(load.latency().as_millis(), 36);
        assert_eq!(answer_after(Duration::from_millis(20)).await, 49);
    }

    proptest! {
        #[test]
        fn a_cost_is_a_number_and_every_call_is_counted_once(
            first in 0_u64..10_000_000,
            steps in prop::collection::vec((0_u8..4, 0_u64..100_000_000), 0..60),
        ) {
            let runtime = runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let load = Arc::new(Load::new(Duration::from_micros(first)));
                let mut in_flight = Vec::new();
                for (what, micros) in steps {
                    match (what, in_flight.pop()) {
                        (1, Some(pending)) => Pending::end(pending, Outcome::Answered),
                        (2, Some(pending)) => Pending::end(pending, Outcome::Failed),
                        (3, Some(pending)) => drop(pending),
                        (_, pending) => {
                            in_flight.extend(pending);
                            in_flight.push(load.begin());
                        }
                    }
                    advance(Duration::from_micros(micros)).await;
                    prop_assert_eq!(load.pending() as usize, in_flight.len());
                    prop_assert!(load.cost().is_finite() && load.cost() > 0.0);
                }
                Ok(())
            })?;
        }

        #[test]
        fn whatever_is_picked_is_one_of_the_candidates(
            seed: u64,
            costs in prop::collection::vec(any::<f64>(), 0..9),
            avoided in 0_usize..9,
            in_turn: bool,
        ) {
            let balance = if in_turn { Balance::RoundRobin } else { Balance::PowerOfTwoChoices };
            let picker = Picker::new(balance, Random::new(seed));
            let candidates: Vec<_> = costs.iter().enumerate().collect();
            for _ in 0..20 {
                let picked = picker.pick(&candidates, |it| *it.1, |it| it.0 == avoided);
                prop_assert_eq!(picked.is_none(), candidates.is_empty());
                let may_be = |it: &&(usize, _)| it.0 != avoided || candidates.len() == 1;
                prop_assert!(picked.is_none_or(|it| may_be(&it)));
            }
        }
    }
}
