//! A service from its start to the end of its drain.
//!
//! tonic's own server never ends while one silent connection is left; here the
//! drain has a hard deadline.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc};

use client::{Channel, Identity, SpiffeId, Target};
use http::Request;
use proto::Policies;
use tokio::{net::TcpListener, sync::watch, time};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, server::NamedService, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tower::Service;

use crate::{
    Clock, Config, Identifiers,
    access_token::{Realm, TokenIssuer, TokenKeys, Verifier},
    call::{Load, Rules},
    connection::{
        Backlog, Callers, Drain, FLUSH_TIMEOUT, Limits, Patience, Slots, accept, renew, serve_probe,
    },
    health::Health,
    sqlite,
};

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

    /// A channel to another workload of the same trust domain and namespace, to be built.
    pub fn channel(&self, target: &Target, workload: &str) -> client::Builder {
        let Config { trust_domain, namespace, .. } = &self.config;
        Channel::to(target.to_string())
            .identity(self.identity.clone())
            .peer(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{workload}"))
    }

    /// Issues the access tokens of the suite.
    pub fn token_issuer(&self) -> TokenIssuer {
        TokenIssuer::new(&self.config.trust_domain, &self.config.namespace)
    }

    fn realm(&self) -> Realm {
        Realm::new(&self.config.trust_domain, &self.config.namespace)
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
    /// End users are whom a token proves that one of the `token_keys` has signed.
    /// `background` is the work that calls in flight may wait for. It runs
    /// until the last of them has ended, and is then dropped.
    pub async fn serve(
        self,
        services: Services,
        token_keys: TokenKeys,
        background: impl Future<Output = Infallible>,
    ) -> Result<(), StartError> {
        let Services { mut routes, names } = services;
        let (serving_status, is_serving) = watch::channel(false);
        let health = HealthServer::new(Health::new(&names, is_serving));
        if self.config.reflection_enabled {
            routes = reflect(routes, &names)?;
        }
        let routes = routes.add_service(health.clone()).prepare();
        let identity = self.identity.clone();
        let renewals = identity.renewals();
        let (tls, current_tls) = watch::channel(TlsAcceptor::from(identity.server_config()?));
        identity.keep_fresh();
        let grpc = bind("GRPC_LISTEN_ADDRESS", self.config.grpc_listen_address).await?;
        let probes = bind("HEALTH_LISTEN_ADDRESS", self.config.health_listen_address).await?;
        let verifier =
            Verifier { realm: self.realm(), keys: token_keys, clock: self.clock.clone() };
        let rules = Arc::new(Rules {
            policies: Policies::load()?,
            verifier,
            load: Load::default(),
            trust_domain: self.config.trust_domain,
            namespace: self.config.namespace,
        });

        let (caller_limits, probe_limits) = Limits::of_process();
        let (drain, backlog) = (Drain::default(), Backlog::default());
        let connections = TaskTracker::new();
        let callers = Callers {
            tls: current_tls,
            identity: identity.clone(),
            clock: self.clock,
            routes,
            rules,
            backlog: backlog.clone(),
            drain: drain.clone(),
            patience: Patience::default(),
        };
        let accepting = accept(grpc, Slots::new(caller_limits), &connections, |stream, slot| {
            callers.clone().serve(stream, slot)
        });
        // Probes are answered for as long as the process lives.
        let probe_connections = TaskTracker::new();
        let probing =
            accept(probes, Slots::new(probe_limits), &probe_connections, |stream, slot| {
                serve_probe(stream, slot, Routes::new(health.clone()), backlog.clone())
            });

        serving_status.send_replace(true);
        let serving = async {
            tokio::select! {
                never = accepting => match never {},
                // The listener closes when this has ended.
                () = async {
                    self.shutdown.cancelled().await;
                    serving_status.send_replace(false);
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
            never = renew(&identity, renewals, tls) => match never {},
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

fn reflect(routes: Routes, names: &[&str]) -> Result<Routes, StartError> {
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // What errors carry, so that whoever reflects can read it.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    Ok(routes.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?))
}

async fn bind(variable: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |cause| StartError::Bind { variable, address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "listening, as {variable} says");
    Ok(listener)
}
