//! The channel that generated clients call through.

use std::{
    fmt,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::HeaderValue;
use proto::Policies;
use tokio::runtime::Handle;
use tonic::{Status, body::Body, transport};
use tower::{Service, ServiceExt, service_fn};
use tracing::Instrument;

use crate::{
    Deadline, Identity, SpiffeId,
    call::Call,
    connect::{Connector, Target},
    deadline::{self, InvalidTimeout},
    end_user, identity, spiffe,
};

/// How long a connection may be silent before it is asked whether it lives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long it may take to say so.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls to one peer over one connection, made when it is first needed and again
/// when it is lost. Cheap to clone.
#[derive(Clone)]
pub struct Channel {
    inner: transport::Channel,
    shared: Arc<Shared>,
}

struct Shared {
    /// The peer as errors name it.
    peer: Arc<str>,
    policies: Policies,
}

/// Says whom to call and as whom. Made by [`Channel::to`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    target: String,
    identity: Option<Identity>,
    peer: Option<String>,
}

/// Why a channel cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target has another form.
    #[error("{target:?} is no target: {problem}; give static:///host:port[,host:port]...")]
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
    /// Begins a channel to `static:///host:port`.
    ///
    /// Several addresses are separated by commas. They are tried in order,
    /// beginning with the one that worked last.
    pub fn to(target: impl Into<String>) -> Builder {
        Builder { target: target.into(), identity: None, peer: None }
    }

    /// When a call is over: at the deadline that its caller works under, or at
    /// the timeout of the request, or else of the contract, if that is sooner.
    fn deadline(&self, request: &http::Request<Body>) -> Result<Option<Deadline>, InvalidTimeout> {
        let default_deadline = || {
            let policy = self.shared.policies.get(request.uri().path());
            policy.map(|policy| policy.default_deadline)
        };
        let timeout = deadline::requested_timeout(request.headers())?.or_else(default_deadline);
        let own = timeout.map(Deadline::after);
        Ok(own.into_iter().chain(deadline::current()).min())
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

    /// Builds the channel, which belongs to the tokio runtime that it is built
    /// in. Connects to nothing yet.
    pub fn build(self) -> Result<Channel, Error> {
        let Self { target, identity, peer } = self;
        let refuse = |problem| Error::Target { target: target.clone(), problem };
        let addresses: Target = target.parse().map_err(refuse)?;
        let identity = identity.ok_or_else(|| Error::NoIdentity(target.clone()))?;
        let peer: SpiffeId = peer
            .ok_or_else(|| Error::NoPeer(target.clone()))?
            .parse()
            .map_err(|source| Error::Peer { target: target.clone(), source })?;
        if Handle::try_current().is_err() {
            return Err(Error::NoRuntime(target));
        }

        let endpoint =
            transport::Endpoint::from_shared(format!("https://{}", addresses.authority()))
                .map_err(|error| refuse(error.to_string()))?
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true);
        let connector = Connector::new(addresses, identity.client_config(peer.clone())?);
        let inner =
            endpoint.connect_with_connector_lazy(service_fn(move |_| connector.clone().connect()));
        Ok(Channel {
            inner,
            shared: Arc::new(Shared {
                peer: format!("{} at {target}", peer.workload()).into(),
                policies: Policies::load()?,
            }),
        })
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let deadline = match self.deadline(&request) {
            Ok(deadline) => deadline,
            Err(error) => return Box::pin(ready(Err(Status::internal(error.to_string())))),
        };
        let peer = Arc::clone(&self.shared.peer);
        let call = Call::new(request.uri().path(), peer, deadline);

        let headers = request.headers_mut();
        call.inject_trace(headers);
        if let Some(token) = end_user::current() {
            token.send(headers);
        }
        if let Some(deadline) = deadline {
            let timeout = deadline::format_timeout(deadline.remaining());
            if let Ok(timeout) = HeaderValue::try_from(timeout) {
                headers.insert(deadline::GRPC_TIMEOUT, timeout);
            }
        }
        let span = call.span();
        let response = self.inner.clone().oneshot(request);
        Box::pin(call.run(response).instrument(span))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Channel({})", self.shared.peer)
    }
}

#[cfg(test)]
mod tests;
