//! Accepts connections, serves RPCs on them, and drains.
//!
//! tonic's own server never ends while one silent connection is left; here the
//! drain has a hard deadline.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use client::{Identity, SpiffeId};
use http::Request;
use http_body::Body as HttpBody;
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proto::Policies;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::Service;

use crate::{
    Clock, Config, Identifiers,
    call::{Call, Rules},
};

/// How long a peer may take over its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long answers may take to leave once the drain deadline has cut their calls.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait before accepting again when accepting fails, which it does when
/// the process runs out of descriptors.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate, its key or the trust bundle cannot be used.
    #[error(
        "{0}; TLS_CERTIFICATE_FILE, TLS_PRIVATE_KEY_FILE and TLS_TRUST_BUNDLE_FILE take paths \
         of PEM files"
    )]
    Identity(#[from] client::identity::Error),
    /// The contract states a policy that cannot be read.
    #[error(transparent)]
    Policy(#[from] proto::policy::Error),
    /// An address cannot be listened on.
    #[error("{variable} is {address}, which cannot be listened on: {cause}")]
    Bind {
        /// The variable that names the address.
        variable: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        cause: io::Error,
    },
    /// Reflection cannot read the descriptors.
    #[error("the descriptors of the contract cannot be served: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What a process gives to the service that runs in it: listeners, an identity,
/// time, and the word to stop.
#[derive(Debug)]
pub struct Server {
    config: Config,
    grpc: TcpListener,
    health: TcpListener,
    identity: Identity,
    clock: Clock,
    identifiers: Identifiers,
    shutdown: CancellationToken,
}

impl Server {
    /// Loads the identity, then binds both ports; port 0 takes any free one.
    /// `shutdown` begins the drain.
    pub async fn bind(
        config: Config,
        clock: Clock,
        identifiers: Identifiers,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let identity = Identity::load(&config.identity)?;
        let grpc = bind("GRPC_LISTEN_ADDRESS", config.grpc_listen_address).await?;
        let health = bind("HEALTH_LISTEN_ADDRESS", config.health_listen_address).await?;
        Ok(Self { config, grpc, health, identity, clock, identifiers, shutdown })
    }

    /// Where RPCs are served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc.local_addr().unwrap_or(self.config.grpc_listen_address)
    }

    /// Where health alone is served, in plaintext.
    pub fn health_address(&self) -> SocketAddr {
        self.health.local_addr().unwrap_or(self.config.health_listen_address)
    }

    /// Who this service is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The SPIFFE ID of another workload of the same trust domain and namespace.
    pub fn peer(&self, workload: &str) -> String {
        let Config { trust_domain, namespace, .. } = &self.config;
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{workload}")
    }

    /// Where the time comes from.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Where identifiers come from.
    pub fn identifiers(&self) -> &Identifiers {
        &self.identifiers
    }

    /// Serves until the drain is over: says NOT_SERVING, waits, sends GOAWAY, lets
    /// calls end, and at the drain deadline cuts those that have not.
    ///
    /// `background` is the work that calls in flight may wait for. It runs
    /// until the last of them has ended, and is then dropped.
    pub async fn serve(
        self,
        services: Services,
        background: impl Future<Output = Infallible>,
    ) -> Result<(), StartError> {
        let Services { mut routes, names } = services;
        let (mut reporter, health) = tonic_health::server::health_reporter();
        if self.config.reflection_enabled {
            let reflection = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            routes = routes
                .add_service(reflection().build_v1()?)
                .add_service(reflection().build_v1alpha()?);
        }
        let routes = routes.add_service(health.clone()).prepare();
        let tls = TlsAcceptor::from(self.identity.server_config()?);
        let rules = Arc::new(Rules {
            policies: Policies::load()?,
            trust_domain: self.config.trust_domain,
            namespace: self.config.namespace,
        });

        let drain = Drain::default();
        let connections = TaskTracker::new();
        let accepting = accept(self.grpc, &connections, |stream| {
            let (tls, drain) = (tls.clone(), drain.clone());
            let (routes, rules) = (routes.clone(), Arc::clone(&rules));
            async move {
                let handshake = time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
                let stream = match handshake.await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
                    Err(_) => return tracing::debug!("handshake took too long"),
                };
                let call = Call::new(routes, rules, peer(&stream), drain.cut.clone());
                serve_connection(stream, drain, move |request| call.clone().serve(request)).await;
            }
        });
        let probe_connections = TaskTracker::new();
        // Probes are answered for as long as the process lives.
        let probe_drain = Drain::default();
        let probing = accept(self.health, &probe_connections, |stream| {
            let (mut routes, drain) = (Routes::new(health.clone()), probe_drain.clone());
            serve_connection(stream, drain, move |request| routes.call(request))
        });

        set_status(&mut reporter, &names, ServingStatus::Serving).await;
        let serving = async {
            tokio::select! {
                never = accepting => match never {},
                // The listener closes when this has ended.
                () = async {
                    self.shutdown.cancelled().await;
                    set_status(&mut reporter, &names, ServingStatus::NotServing).await;
                    time::sleep(self.config.drain_delay).await;
                } => {}
            }
            drain.goaway.cancel();
            connections.close();
            if time::timeout(self.config.drain_deadline, connections.wait()).await.is_err() {
                tracing::warn!(left = connections.len(), "calls outlive the drain deadline");
                drain.cut.cancel();
                let _ = time::timeout(FLUSH_TIMEOUT, connections.wait()).await;
            }
        };
        tokio::select! {
            () = serving => Ok(()),
            never = probing => match never {},
            never = background => match never {},
        }
    }
}

/// The services that a server offers.
#[derive(Debug, Default)]
pub struct Services {
    routes: Routes,
    names: Vec<&'static str>,
}

impl Services {
    /// Adds a generated service.
    #[must_use]
    pub fn and<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes = self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }
}

async fn bind(variable: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Bind { variable, address, cause })
}

/// How a connection learns that the server drains.
#[derive(Clone, Default)]
struct Drain {
    /// Begin no new call.
    goaway: CancellationToken,
    /// End every call.
    cut: CancellationToken,
}

async fn set_status(reporter: &mut HealthReporter, names: &[&str], status: ServingStatus) {
    // The empty name is the server as a whole.
    for name in names.iter().chain(&[""]) {
        reporter.set_service_status(*name, status).await;
    }
}

async fn accept<F>(
    listener: TcpListener,
    connections: &TaskTracker,
    mut serve: impl FnMut(TcpStream) -> F,
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small; Nagle's algorithm would hold them back.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                time::sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
}

/// The SPIFFE ID that the handshake proved.
fn peer(stream: &tokio_rustls::server::TlsStream<TcpStream>) -> Option<SpiffeId> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    SpiffeId::from_certificate(certificate)
        .inspect_err(|error| tracing::debug!(%error, "the peer has no SPIFFE ID"))
        .ok()
}

async fn serve_connection<I, H, F, B>(stream: I, drain: Drain, handle: H)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: FnMut(Request<Incoming>) -> F + Clone,
    F: Future<Output = Result<http::Response<B>, Infallible>> + Send + 'static,
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = hyper::service::service_fn(move |request| handle.clone()(request));
    let mut connection = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(1024)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service)
    );
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = drain.goaway.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection broke");
    }
}
