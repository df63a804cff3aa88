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
    sqlite,
};

/// How long a peer may take over its TLS handshake, and a probe over its first
/// question.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long answers may take to leave once the drain deadline has cut their calls.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait before accepting again when accepting fails, which it does when
/// the process runs out of descriptors.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Why a service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate, its key or the trust bundle cannot be used.
    #[error(
        "{0}; TLS_CERTIFICATE_FILE, TLS_PRIVATE_KEY_FILE and TLS_TRUST_BUNDLE_FILE take paths \
         of PEM files"
    )]
    Identity(#[from] client::identity::Error),
    /// The service has no name in this trust domain and namespace.
    #[error("TRUST_DOMAIN and NAMESPACE make no SPIFFE ID: {0}")]
    Name(#[from] client::spiffe::Error),
    /// The certificate is somebody else's.
    #[error(
        "TLS_CERTIFICATE_FILE is of {found}, and this is {expected}; give it its own certificate, \
         or correct TRUST_DOMAIN and NAMESPACE"
    )]
    AnotherIdentity {
        /// Whose certificate it is.
        found: SpiffeId,
        /// Whose it should be.
        expected: SpiffeId,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] sqlite::OpenError),
    /// Another service cannot be called.
    #[error(transparent)]
    Client(#[from] client::Error),
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

/// What a process gives to the service that runs in it: an identity, time, the
/// ports it is to serve on, and the word to stop.
#[derive(Debug)]
pub struct Server {
    config: Config,
    identity: Identity,
    clock: Clock,
    identifiers: Identifiers,
    shutdown: CancellationToken,
}

impl Server {
    /// Loads the identity of the service `name`. Nothing is bound yet, so that all that
    /// can be wrong shows before a caller can connect. `shutdown` begins the drain.
    pub fn new(
        name: &str,
        config: Config,
        clock: Clock,
        identifiers: Identifiers,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let identity = Identity::load(&config.identity)?;
        let expected = SpiffeId::new(&config.trust_domain, &config.namespace, name)?;
        let found = identity.spiffe_id().clone();
        if found != expected {
            return Err(StartError::AnotherIdentity { found, expected });
        }
        Ok(Self { config, identity, clock, identifiers, shutdown })
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

    /// Binds both ports and serves until the drain is over: says NOT_SERVING, waits,
    /// sends GOAWAY, lets calls end, and at the drain deadline cuts those that have not.
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
                let builder = tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                    .with_service_name("grpc.health.v1.Health");
                names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
            };
            routes = routes
                .add_service(reflection().build_v1()?)
                .add_service(reflection().build_v1alpha()?);
        }
        let routes = routes.add_service(health.clone()).prepare();
        let tls = TlsAcceptor::from(self.identity.server_config()?);
        let grpc = bind("GRPC_LISTEN_ADDRESS", self.config.grpc_listen_address).await?;
        let probes = bind("HEALTH_LISTEN_ADDRESS", self.config.health_listen_address).await?;
        let rules = Arc::new(Rules {
            policies: Policies::load()?,
            trust_domain: self.config.trust_domain,
            namespace: self.config.namespace,
        });

        let drain = Drain::default();
        let connections = TaskTracker::new();
        let accepting = accept(grpc, &connections, |stream| {
            let (tls, drain) = (tls.clone(), drain.clone());
            let (routes, rules) = (routes.clone(), Arc::clone(&rules));
            async move {
                let handshake = time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
                let stream = tokio::select! {
                    shaken = handshake => match shaken {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
                        Err(_) => return tracing::debug!("handshake took too long"),
                    },
                    () = drain.goaway.cancelled() => return,
                };
                let call = Call::new(routes, rules, peer(&stream), drain.clone());
                serve_connection(stream, drain, move |request| call.clone().serve(request)).await;
            }
        });
        let probe_connections = TaskTracker::new();
        // Probes are answered for as long as the process lives.
        let probe_drain = Drain::default();
        let probing = accept(probes, &probe_connections, |stream| {
            let (routes, drain) = (Routes::new(health.clone()), probe_drain.clone());
            let probed = CancellationToken::new();
            let answer = {
                let probed = probed.clone();
                move |request| {
                    probed.cancel();
                    routes.clone().call(request)
                }
            };
            async move {
                // Anybody can connect to this port, but a probe has something to ask.
                let silent = async {
                    time::sleep(HANDSHAKE_TIMEOUT).await;
                    if probed.is_cancelled() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = serve_connection(stream, drain, answer) => {}
                    () = silent => tracing::debug!("a connection asked nothing"),
                }
            }
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
    let failed = |cause| StartError::Bind { variable, address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "listening, as {variable} says");
    Ok(listener)
}

/// How connections and calls learn that the server drains.
#[derive(Clone, Default)]
pub(crate) struct Drain {
    /// Begin no new call, and end those that have no end of their own.
    pub(crate) goaway: CancellationToken,
    /// End every call.
    pub(crate) cut: CancellationToken,
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
