//! One endpoint as calls see it: its connections, and how busy it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    balance::{Load, Outcome, Pending},
    connection::{Connection, Stream},
    snapshot::{EndpointSnapshot, EndpointState},
    target::Address,
};

/// How many streams a connection is to carry on average: half of what a peer is sure to
/// allow, which is 100 (RFC 9113, section 6.5.2).
const STREAMS_PER_CONNECTION: usize = 50;

/// The most connections to one endpoint. One saturates at about half of what four reach,
/// and more reach no more.
const MAX_CONNECTIONS: usize = 4;

/// How many calls the average of open streams is taken over.
const CALLS_ON_AVERAGE: usize = 16;

/// Where calls go.
pub(crate) struct Endpoint {
    address: Address,
    state: watch::Sender<State>,
    load: Arc<Load>,
    /// The streams that calls found open, on average, as a multiple of
    /// 1 / [`CALLS_ON_AVERAGE`].
    crowd: AtomicUsize,
    /// Told when more connections are wanted.
    crowded: Notify,
    /// Told when a call wants to know whether there is still nobody.
    knocked: Notify,
    attempts: AtomicU64,
    failures: AtomicU64,
}

#[derive(Default)]
struct State {
    connections: Vec<Arc<Connection>>,
    failure: Option<Failure>,
}

/// Why there are no connections. It counts until there is one, or one was lost.
pub(crate) struct Failure {
    pub(crate) reason: Arc<str>,
    pub(crate) since: Instant,
    /// For how long calls believe it before they have the peer looked for again.
    pub(crate) is_news_for: Duration,
    pub(crate) retry_at: Instant,
}

impl Failure {
    /// Whether a call that asks since then believes it.
    fn is_news(&self, asked: Instant) -> bool {
        asked.saturating_duration_since(self.since) <= self.is_news_for
    }
}

/// A place for one attempt at a call, which counts as in flight until it ends.
pub(crate) struct Lease {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) stream: Stream,
    pub(crate) pending: Pending,
}

impl Endpoint {
    pub(crate) fn new(address: Address) -> Self {
        Self {
            address,
            state: watch::Sender::default(),
            // Its first call will tell more than the time that a handshake took, and until
            // then two choices in turn give it twice its part at most.
            load: Arc::new(Load::new(Duration::ZERO)),
            crowd: AtomicUsize::new(0),
            crowded: Notify::new(),
            knocked: Notify::new(),
            attempts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Lets these be the connections to call over, or this the reason why there are none.
    pub(crate) fn publish(&self, connections: Vec<Arc<Connection>>, failure: Option<Failure>) {
        let failure = failure.filter(|_| connections.is_empty());
        if !connections.is_empty() && self.state.borrow().failure.is_some() {
            // Whoever comes back is judged by what he does from now on.
            self.load.reset();
        }
        self.state.send_replace(State { connections, failure });
    }

    /// The number of connections that calls want, once that is more than there are.
    pub(crate) async fn crowded(&self) -> usize {
        self.crowded.notified().await;
        self.wanted_connections()
    }

    /// Whether there is a connection to call over.
    pub(crate) fn is_ready(&self) -> bool {
        self.state.borrow().connections.iter().any(|it| !it.is_closed())
    }

    /// Why nobody can be called here, if a call that asks since then believes it; none
    /// while that is not known yet, or is found out again, which this begins.
    pub(crate) fn believed_failure(&self, asked: Instant) -> Option<Arc<str>> {
        let state = self.state.borrow();
        let failure = state.failure.as_ref()?;
        if !failure.is_news(asked) {
            self.knocked.notify_one();
            return None;
        }
        Some(Arc::clone(&failure.reason))
    }

    /// Returns when a call wants to know whether there is still nobody.
    pub(crate) async fn knocked(&self) {
        loop {
            self.knocked.notified().await;
            let is_old = |failure: &Failure| !failure.is_news(Instant::now());
            if self.state.borrow().failure.as_ref().is_some_and(is_old) {
                return;
            }
        }
    }

    /// What one more call would cost, for the picker to compare.
    pub(crate) fn cost(&self) -> f64 {
        self.load.cost()
    }

    /// A place on the connection with the fewest open streams; none if there is no
    /// connection, or none with room, any more.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut streams = 0;
        let mut connections = 0;
        let emptiest = {
            let state = self.state.borrow();
            let open = state.connections.iter().filter(|it| !it.is_closed());
            let counted = open.inspect(|connection| {
                streams += connection.open_streams();
                connections += 1;
            });
            counted.min_by_key(|connection| connection.open_streams()).cloned()
        };
        self.record_crowd(streams);
        if self.wanted_connections() > connections {
            self.crowded.notify_one();
        }
        let stream = emptiest.filter(|it| it.has_room())?.open();
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Some(Lease { endpoint: Arc::clone(self), stream, pending: self.load.begin() })
    }

    /// Whether there is a connection with room for one more stream.
    pub(crate) fn has_room(&self) -> bool {
        self.state.borrow().connections.iter().any(|it| !it.is_closed() && it.has_room())
    }

    /// Takes back a lease of which nothing came: nothing was sent.
    pub(crate) fn take_back(&self, pending: Pending) {
        self.attempts.fetch_sub(1, Ordering::Relaxed);
        drop(pending);
    }

    /// Ends an attempt that was made here.
    pub(crate) fn end(&self, pending: Pending, outcome: Outcome) {
        if outcome == Outcome::Failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        pending.end(outcome);
    }

    /// Lets the number of streams that a call found open count among those of the last ones.
    fn record_crowd(&self, streams: usize) {
        // That calls that come at once overwrite what each other found is no harm.
        let crowd = self.crowd.load(Ordering::Relaxed);
        self.crowd.store(crowd - crowd / CALLS_ON_AVERAGE + streams, Ordering::Relaxed);
    }

    /// Little's law: calls per second times seconds per call, over the streams of a
    /// connection. The product is the number of streams that are open on average, which
    /// is what calls find that arrive at random.
    fn wanted_connections(&self) -> usize {
        let crowd = self.crowd.load(Ordering::Relaxed);
        crowd.div_ceil(CALLS_ON_AVERAGE * STREAMS_PER_CONNECTION).clamp(1, MAX_CONNECTIONS)
    }

    pub(crate) fn snapshot(&self) -> EndpointSnapshot {
        let state = self.state.borrow();
        let open = state.connections.iter().filter(|it| !it.is_closed());
        let (connections, open_calls) = open.fold((0, 0), |(connections, streams), it| {
            (connections + 1, streams + it.open_streams())
        });
        let condition = match &state.failure {
            _ if connections > 0 => EndpointState::Ready,
            Some(Failure { reason, retry_at, .. }) => EndpointState::Failed {
                reason: reason.to_string(),
                retry_in: retry_at.saturating_duration_since(Instant::now()),
            },
            None => EndpointState::Connecting,
        };
        EndpointSnapshot {
            address: self.address.to_string(),
            state: condition,
            connections,
            open_calls,
            latency: self.load.latency(),
            attempts: self.attempts.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}
