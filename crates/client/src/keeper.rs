//! The task that keeps an endpoint connected: it makes as many connections as calls want,
//! and new ones for those that are lost or were made as an identity that is renewed.

use std::{mem, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    connection::{Connection, Connector, Driver, NoConnection},
    endpoint::{Endpoint, Failure},
    random::Random,
};

/// The waits between attempts to connect: the first, how much longer each next one is,
/// and the longest, which lets a caller find a peer within 5 s of its return.
const BASE_BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_FACTOR: f64 = 1.6;
const MAX_BACK_OFF: Duration = Duration::from_secs(2);
/// The part of a wait that chance takes or gives, so that callers that lost a peer
/// together do not come back together.
const JITTER: f64 = 0.2;

/// For how long calls believe that a peer hangs up on whoever connects: to find out takes a
/// handshake, but one that restarts does so, too.
const HANGING_UP_IS_NEWS: Duration = Duration::from_millis(500);

/// How long the connections of a channel take to follow a renewal of its identity, at
/// most, so that not all connections of a fleet are made in the same moment.
const RENEWAL_SPREAD: Duration = Duration::from_secs(1);

/// Keeps an endpoint connected.
pub(crate) struct Keeper<F: Fn()> {
    endpoint: Arc<Endpoint>,
    connector: Connector,
    /// Told that the endpoint is ready, or no longer.
    changed: F,
    /// Told that the endpoint may be there no longer.
    lost: Arc<Notify>,
    random: Arc<Random>,
    /// The connections of the identity of today, and those that wait to be replaced.
    current: Vec<Arc<Connection>>,
    outdated: Vec<Arc<Connection>>,
    drivers: JoinSet<String>,
    /// How many connections there should be; it never shrinks.
    wanted: usize,
    /// How many attempts to connect have failed in a row, or made what was good for nothing.
    troubles: i32,
    is_down: bool,
}

impl<F: Fn()> Keeper<F> {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        connector: Connector,
        changed: F,
        lost: Arc<Notify>,
        random: Arc<Random>,
    ) -> Self {
        Self {
            endpoint,
            connector,
            changed,
            lost,
            random,
            current: Vec::new(),
            outdated: Vec::new(),
            drivers: JoinSet::new(),
            wanted: 1,
            troubles: 0,
            is_down: false,
        }
    }

    /// Makes and replaces connections for ever.
    pub(crate) async fn run(mut self) {
        let mut renewals = self.connector.identity.renewals();
        let mut next = Instant::now();
        let mut attempt = pin!(connect_at(next, self.connector.clone()));
        loop {
            next = tokio::select! {
                made = &mut attempt, if self.current.len() < self.wanted => match made {
                    Ok((connection, driver)) => self.add(connection, driver),
                    Err(no_connection) => self.fail(no_connection),
                },
                Some(ended) = self.drivers.join_next() => {
                    let reason = ended.unwrap_or_else(|error| error.to_string());
                    let Some(next) = self.drop_closed(reason) else { continue };
                    next
                }
                wanted = self.endpoint.crowded() => {
                    self.wanted = self.wanted.max(wanted);
                    continue;
                }
                () = self.endpoint.knocked() => match Instant::now() {
                    now if now < next => now,
                    // It is being found out already.
                    _ => continue,
                },
                () = renewals.next() => self.renew(),
            };
            attempt.set(connect_at(next, self.connector.clone()));
        }
    }

    /// Takes a new connection into use, in the place of one that is outdated. The streams
    /// of that one go on to their ends. Returns when to make the next connection.
    fn add(&mut self, connection: Connection, driver: Driver) -> Instant {
        self.drivers.spawn(driver);
        self.current.push(Arc::new(connection));
        self.outdated.pop();
        if self.current.len() == self.wanted {
            self.outdated.clear();
        }
        if mem::take(&mut self.is_down) {
            tracing::info!(endpoint = %self.endpoint.address(), "up again");
        }
        self.publish(None);
        Instant::now()
    }

    /// Returns when to try again.
    fn fail(&mut self, NoConnection { reason, is_news_for }: NoConnection) -> Instant {
        let since = Instant::now();
        let retry_at = since + self.back_off();
        if !self.endpoint.is_ready() {
            self.lost.notify_one();
            if !mem::replace(&mut self.is_down, true) {
                tracing::info!(endpoint = %self.endpoint.address(), reason, "down");
            }
        }
        self.publish(Some(Failure { reason: reason.into(), since, is_news_for, retry_at }));
        retry_at
    }

    /// Forgets the connections that have ended. Returns when to make another one; none if
    /// those had been replaced before.
    fn drop_closed(&mut self, reason: String) -> Option<Instant> {
        let connections = self.current.iter().chain(&self.outdated);
        let has_served = connections
            .filter(|it| it.is_closed())
            .map(|it| it.has_served(MAX_BACK_OFF))
            .reduce(|one, other| one || other)?;
        self.current.retain(|it| !it.is_closed());
        self.outdated.retain(|it| !it.is_closed());
        self.lost.notify_one();
        if !has_served && self.troubles > 0 {
            // Time and again, the peer takes a connection and does nothing with it.
            return Some(self.fail(NoConnection { reason, is_news_for: HANGING_UP_IS_NEWS }));
        }
        self.troubles = i32::from(!has_served);
        self.publish(None);
        Some(Instant::now())
    }

    /// Begins to replace all connections. Returns when to make the first new one. One to
    /// a peer that is trusted no more gets no call from here on; what is open on it ends
    /// by its deadline at the latest.
    fn renew(&mut self) -> Instant {
        self.outdated.append(&mut self.current);
        let all = self.outdated.len();
        self.outdated.retain(|connection| connection.is_trusted(&self.connector));
        if self.outdated.len() < all {
            self.publish(None);
        }
        let now = Instant::now();
        if self.endpoint.is_ready() {
            now + RENEWAL_SPREAD.mul_f64(self.random.unit())
        } else {
            now
        }
    }

    fn publish(&self, failure: Option<Failure>) {
        let connections = self.outdated.iter().chain(&self.current).cloned().collect();
        self.endpoint.publish(connections, failure);
        (self.changed)();
    }

    /// How long to wait after one more trouble.
    fn back_off(&mut self) -> Duration {
        let wait = BASE_BACK_OFF.as_secs_f64() * BACK_OFF_FACTOR.powi(self.troubles);
        self.troubles = self.troubles.saturating_add(1);
        let jitter = 1.0 + JITTER * (2.0 * self.random.unit() - 1.0);
        Duration::from_secs_f64(wait.min(MAX_BACK_OFF.as_secs_f64()) * jitter)
    }
}

impl<F: Fn()> Drop for Keeper<F> {
    /// Lets the connections end with the calls in flight.
    fn drop(&mut self) {
        self.endpoint.publish(Vec::new(), None);
    }
}

async fn connect_at(
    at: Instant,
    connector: Connector,
) -> Result<(Connection, Driver), NoConnection> {
    sleep_until(at).await;
    connector.connect().await
}
