//! Servers that answer as a test says, and the authority of their identities.

use std::{
    convert::Infallible,
    future::{Future, pending},
    path::Path,
    pin::{Pin, pin},
    sync::{Mutex, atomic::AtomicUsize},
};

use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt;

use super::*;
use crate::{IdentityFiles, MAX_STREAMS};

pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn identity(&self, spiffe_id: &str) -> Identity {
        self.identity_until(spiffe_id, 2099)
    }

    pub(super) fn identity_until(&self, spiffe_id: &str, year: i32) -> Identity {
        let folder = TempDir::new().unwrap();
        Identity::load(&self.write_identity(folder.path(), spiffe_id, year)).unwrap()
    }

    /// Writes a new identity, in the place of an older one if there is one.
    pub(super) fn write_identity(
        &self,
        folder: &Path,
        spiffe_id: &str,
        year: i32,
    ) -> IdentityFiles {
        let day = |year| {
            let date = time::Date::from_ordinal_date(year, 1).unwrap();
            OffsetDateTime::new_utc(date, time::Time::MIDNIGHT)
        };
        let mut parameters = CertificateParams::default();
        parameters.not_before = day(2000);
        parameters.not_after = day(year);
        parameters.subject_alt_names = vec![SanType::URI(spiffe_id.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();

        let write = |name, pem: String| {
            let path = folder.join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        IdentityFiles {
            certificate: write("tls.crt", certificate.pem()),
            private_key: write("tls.key", key.serialize_pem()),
            trust_bundle: write("ca.crt", self.0.pem()),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

/// A server over mutual TLS; dropping it cuts its connections.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) seen: Arc<Seen>,
    drain: CancellationToken,
    connections: JoinSet<()>,
}

/// What a server has seen.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) requests: Mutex<Vec<HeaderMap>>,
    /// The certificate of the caller of each connection so far.
    pub(super) callers: Mutex<Vec<CertificateDer<'static>>>,
    /// The connections that are open now.
    pub(super) connections: AtomicUsize,
}

impl Seen {
    pub(super) fn calls(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Server {
    /// A health service, and no other.
    pub(super) async fn start(identity: &Identity) -> Self {
        let (_, health) = tonic_health::server::health_reporter();
        let routes = Routes::new(health);
        Self::serve(identity, move |request| {
            let routes = routes.clone();
            async move { (routes.oneshot(request).await as Result<_, Infallible>).unwrap() }
        })
        .await
    }

    /// One that never answers.
    pub(super) async fn start_silent(identity: &Identity) -> Self {
        Self::serve(identity, |_| pending()).await
    }

    pub(super) async fn serve<F>(
        identity: &Identity,
        handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve_on("127.0.0.1:0".parse().unwrap(), identity, handle).await
    }

    pub(super) async fn serve_on<F>(
        address: SocketAddr,
        identity: &Identity,
        handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = connection(identity, handle);
        let (seen, drain) = (Arc::clone(&serve.seen), serve.drain.clone());
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(accepted) = serve.drain.run_until_cancelled(listener.accept()).await {
                connections.spawn(serve.clone().run(accepted.unwrap().0));
            }
            drop(listener);
            connections.join_all().await;
        });
        Self { address, seen, drain, connections }
    }

    /// Takes no new connections, and ends the old ones with their calls.
    pub(super) async fn drain(self) {
        self.drain.cancel();
        self.connections.join_all().await;
    }

    pub(super) fn target(&self) -> String {
        format!("static:///{}", self.address)
    }

    pub(super) fn last_timeout(&self) -> Duration {
        let requests = self.seen.requests.lock().unwrap();
        deadline::requested_timeout(requests.last().unwrap()).unwrap().unwrap()
    }
}

/// Serves every call with an empty message on a socket in the file system.
pub(super) fn serve_socket(path: &Path, identity: &Identity) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
    let serve = connection(identity, |_| async { ok() });
    let mut connections = JoinSet::new();
    connections.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(serve.clone().run(stream));
        }
    });
    connections
}

fn connection<F>(
    identity: &Identity,
    handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) -> Connection
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    Connection {
        acceptor: identity.server_config().unwrap().into(),
        handler: Arc::new(move |request| Box::pin(handle(request))),
        seen: Arc::default(),
        drain: CancellationToken::new(),
    }
}

#[derive(Clone)]
struct Connection {
    acceptor: TlsAcceptor,
    handler: Handler,
    seen: Arc<Seen>,
    drain: CancellationToken,
}

impl Connection {
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let Self { acceptor, handler, seen, drain } = self;
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let caller = &stream.get_ref().1.peer_certificates().unwrap()[0];
        seen.callers.lock().unwrap().push(caller.clone().into_owned());
        seen.connections.fetch_add(1, Ordering::Relaxed);

        let service = service_fn(|request: Request<Incoming>| {
            seen.requests.lock().unwrap().push(request.headers().clone());
            let answer = handler(request);
            async { Ok::<_, Infallible>(answer.await) }
        });
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .serve_connection(TokioIo::new(stream), service)
        );
        // How a connection ends is the caller's to judge.
        tokio::select! {
            _ = connection.as_mut() => {}
            () = drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
        seen.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An empty message and the status OK.
pub(super) fn ok() -> Response<Body> {
    message(0)
}

/// A message of so many zeros, which is not one of the contract unless there are none.
pub(super) fn message(length: u32) -> Response<Body> {
    let mut data = vec![0];
    data.extend(length.to_be_bytes());
    data.resize(5 + length as usize, 0);
    let trailers = HeaderMap::from_iter([(Status::GRPC_STATUS, 0.into())]);
    let body = Full::from(data).with_trailers(async { Some(Ok(trailers)) });
    Response::builder().header("content-type", "application/grpc").body(Body::new(body)).unwrap()
}
