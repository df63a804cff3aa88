//! The channel that generated clients call through.

use std::{
    fmt,
    future::{Future, ready},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use proto::{Idempotency, Policies};
use tokio::runtime::Handle;
use tonic::{Status, body::Body};
use tower::Service;
use tracing::Instrument;

use crate::{
    Balance, Deadline, Identity, ResponseBody, Snapshot, SpiffeId, Target,
    attempt::{Attempts, Rules},
    balance::Picker,
    call::Call,
    deadline::{self, InvalidTimeout},
    end_user,
    endpoints::Endpoints,
    identity,
    random::Random,
    spiffe,
};

/// Calls to one peer, wherever it has endpoints. Cheap to clone; the connections end with
/// the last clone and its last call.
#[derive(Clone)]
pub struct Channel(Arc<Shared>);

struct Shared {
    target: Target,
    peer: SpiffeId,
    balance: Balance,
    policies: Policies,
    attempts: Attempts,
}

/// Says whom to call and as whom. Made by [`Channel::to`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    target: String,
    identity: Option<Identity>,
    peer: Option<String>,
    balance: Balance,
}

/// Why a channel cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target has another form.
    #[error(
        "{target:?} is no target: {problem}; give static:///host:port[,host:port]..., \
         dns:///host:port or unix:///absolute/path"
    )]
    Target {
        /// The target.
        target: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The peer is no SPIFFE ID.
    #[error("the peer of {target} is not named: {source}")]
    Peer {
        /// The target.
        target: String,
        /// What is wrong with the peer.
        source: spiffe::Error,
    },
    /// No peer was given.
    #[error("the channel to {0} has no peer; name its SPIFFE ID with `peer`")]
    NoPeer(String),
    /// No identity was given.
    #[error("the channel to {0} has no identity; give one with `identity`")]
    NoIdentity(String),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The contract cannot be read.
    #[error(transparent)]
    Contract(#[from] proto::policy::Error),
    /// There is no tokio runtime for the connection to live on.
    #[error("the channel to {0} is built outside a tokio runtime")]
    NoRuntime(String),
}

impl Channel {
    /// Begins a channel to a [`Target`].
    pub fn to(target: impl Into<String>) -> Builder {
        Builder { target: target.into(), identity: None, peer: None, balance: Balance::default() }
    }

    /// What the channel knows and has done.
    pub fn snapshot(&self) -> Snapshot {
        let Shared { target, peer, balance, attempts, .. } = &*self.0;
        let Attempts { endpoints, budget, counts, .. } = attempts;
        let (endpoints, discovery_error) = endpoints.known();
        Snapshot {
            target: target.to_string(),
            peer: peer.to_string(),
            balance: *balance,
            calls: counts.calls.load(Ordering::Relaxed),
            attempts: counts.attempts.load(Ordering::Relaxed),
            replays: counts.replays.load(Ordering::Relaxed),
            retries_left: budget.retries(),
            endpoints: endpoints.iter().map(|it| it.snapshot()).collect(),
            discovery_error,
        }
    }
}

impl Shared {
    /// When a call is over: at the deadline that its caller works under, or at
    /// the timeout of the request, or else of the contract, if that is sooner.
    fn rules(&self, request: &http::Request<Body>) -> Result<Rules, InvalidTimeout> {
        let policy = self.policies.get(request.uri().path());
        let default_deadline = || policy.map(|policy| policy.default_deadline);
        let timeout = deadline::requested_timeout(request.headers())?.or_else(default_deadline);
        let own = timeout.map(Deadline::after);
        Ok(Rules {
            idempotency: policy.map_or(Idempotency::Unknown, |policy| policy.idempotency),
            is_unary: policy.is_some_and(|policy| !policy.streaming),
            deadline: own.into_iter().chain(deadline::current()).min(),
        })
    }
}

impl Builder {
    /// Calls as this identity.
    pub fn identity(self, identity: Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// Calls nobody but the workload of this SPIFFE ID.
    pub fn peer(self, peer: impl Into<String>) -> Self {
        Self { peer: Some(peer.into()), ..self }
    }

    /// Chooses endpoints in this way.
    pub fn balance(self, balance: Balance) -> Self {
        Self { balance, ..self }
    }

    /// Builds the channel, which belongs to the tokio runtime that it is built in. Begins
    /// to connect, and waits for nothing.
    pub fn build(self) -> Result<Channel, Error> {
        let Self { target, identity, peer, balance } = self;
        let refuse = |problem| Error::Target { target: target.clone(), problem };
        let parsed: Target = target.parse().map_err(refuse)?;
        let identity = identity.ok_or_else(|| Error::NoIdentity(target.clone()))?;
        let peer: SpiffeId = peer
            .ok_or_else(|| Error::NoPeer(target.clone()))?
            .parse()
            .map_err(|source| Error::Peer { target: target.clone(), source })?;
        // Whatever is wrong with it is better said now than at every connection.
        identity.client_config(peer.clone())?;
        let policies = Policies::load()?;
        if Handle::try_current().is_err() {
            return Err(Error::NoRuntime(target));
        }

        identity.keep_fresh();
        let random = Arc::new(Random::unseeded());
        let picker = Picker::new(balance, Random::unseeded());
        let endpoints =
            Endpoints::new(&parsed, identity, peer.clone(), picker, Arc::clone(&random));
        let attempts = Attempts::new(endpoints, random);
        Ok(Channel(Arc::new(Shared { target: parsed, peer, balance, policies, attempts })))
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<ResponseBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        let rules = match shared.rules(&request) {
            Ok(rules) => rules,
            Err(error) => return Box::pin(ready(Err(Status::internal(error.to_string())))),
        };
        let peer = Arc::clone(shared.attempts.endpoints.peer());
        let call = Call::new(request.uri().path(), peer, rules.deadline);

        let headers = request.headers_mut();
        call.inject_trace(headers);
        if let Some(token) = end_user::current() {
            token.send(headers);
        }
        let span = call.span();
        let response = async move { call.run(shared.attempts.send(request, rules)).await };
        Box::pin(response.instrument(span))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Channel({})", self.0.attempts.endpoints.peer())
    }
}

#[cfg(test)]
mod tests;
