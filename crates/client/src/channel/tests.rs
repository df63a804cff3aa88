use std::{
    future::pending,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use opentelemetry::{
    KeyValue,
    trace::{SpanKind, TracerProvider},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use proto::catalog::v1::{ReserveRequest, stock_service_client::StockServiceClient};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status, body::Body, service::Routes};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{ServiceExt, service_fn};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::{IdentityFiles, deadline};

const CATALOG: &str = "spiffe://test.local/ns/shop/sa/catalog-service";
const PURCHASE: &str = "spiffe://test.local/ns/shop/sa/purchase-service";

/// More than any of these tests takes, and less than a person waits for.
const PATIENCE: Duration = Duration::from_secs(20);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn identity(&self, spiffe_id: &str) -> Identity {
        self.identity_until(spiffe_id, 2099)
    }

    fn identity_until(&self, spiffe_id: &str, year: i32) -> Identity {
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

        let folder = TempDir::new().unwrap();
        let write = |name, pem: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        Identity::load(&IdentityFiles {
            certificate: write("tls.crt", certificate.pem()),
            private_key: write("tls.key", key.serialize_pem()),
            trust_bundle: write("ca.crt", self.0.pem()),
        })
        .unwrap()
    }
}

/// A health service over mutual TLS; dropping it cuts its connections.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<HeaderMap>>>,
    arrived: Arc<tokio::sync::Notify>,
    _connections: JoinSet<()>,
}

impl Server {
    async fn start(identity: &Identity) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), identity, false).await
    }

    async fn start_silent(identity: &Identity) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), identity, true).await
    }

    async fn start_on(address: SocketAddr, identity: &Identity, silent: bool) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(identity.server_config().unwrap());
        let (_, health) = tonic_health::server::health_reporter();
        let routes = Routes::new(health);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let arrived = Arc::new(tokio::sync::Notify::new());

        let seen = (Arc::clone(&requests), Arc::clone(&arrived));
        let service = service_fn(move |request: Request<Incoming>| {
            let routes = routes.clone();
            seen.0.lock().unwrap().push(request.headers().clone());
            seen.1.notify_one();
            async move {
                if silent {
                    pending::<()>().await;
                }
                routes.oneshot(request).await as Result<Response<Body>, _>
            }
        });
        let serve = move |stream: TcpStream| {
            let acceptor = acceptor.clone();
            let service = TowerToHyperService::new(service.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    // How a connection ends is the caller's to judge.
                    let _ = http2::Builder::new(TokioExecutor::new())
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                }
            }
        };
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream));
            }
        });
        Self { address, requests, arrived, _connections: connections }
    }

    fn target(&self) -> String {
        format!("static:///{}", self.address)
    }

    fn last_timeout(&self) -> Duration {
        let requests = self.requests.lock().unwrap();
        deadline::requested_timeout(requests.last().unwrap()).unwrap().unwrap()
    }
}

fn channel(target: impl Into<String>, identity: &Identity) -> Channel {
    Channel::to(target).identity(identity.clone()).peer(CATALOG).build().unwrap()
}

async fn check(channel: &Channel) -> Result<(), Status> {
    check_within(channel, PATIENCE).await
}

async fn check_within(channel: &Channel, timeout: Duration) -> Result<(), Status> {
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(timeout);
    let mut client = HealthClient::new(channel.clone());
    tokio::time::timeout(PATIENCE, client.check(request)).await.unwrap().map(drop)
}

fn assert_unavailable(result: Result<(), Status>, reasons: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    for reason in reasons {
        assert!(status.message().contains(reason), "{status}");
    }
}

#[tokio::test]
async fn the_peer_of_the_right_name_is_called() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    check(&channel).await.unwrap();
}

#[tokio::test]
async fn a_peer_of_another_name_is_not_called() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(PURCHASE)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    assert_unavailable(
        check(&channel).await,
        &[
            &format!("catalog-service at {}", server.target()),
            &format!("expected {CATALOG}, found {PURCHASE}"),
        ],
    );
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_peer_of_a_foreign_authority_is_not_called() {
    let server = Server::start(&Authority::new().identity(CATALOG)).await;
    let channel = channel(server.target(), &Authority::new().identity(PURCHASE));
    assert_unavailable(
        check(&channel).await,
        &["no authority of the trust bundle issued the certificate"],
    );
}

#[tokio::test]
async fn a_peer_whose_certificate_has_expired_is_not_called() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity_until(CATALOG, 2020)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    assert_unavailable(check(&channel).await, &["has expired"]);
}

#[tokio::test]
async fn a_caller_whose_certificate_has_expired_is_refused() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity_until(PURCHASE, 2020));
    assert_unavailable(check(&channel).await, &["catalog-service at"]);
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_next_address_is_called_when_the_first_is_down() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let target = format!("static:///{},{}", unused_address(), server.address);
    check(&channel(target, &authority.identity(PURCHASE))).await.unwrap();
}

#[tokio::test]
async fn every_address_that_is_down_is_named() {
    let (one, other) = (unused_address(), unused_address());
    let target = format!("static:///{one},{other}");
    let channel = channel(target, &Authority::new().identity(PURCHASE));
    assert_unavailable(
        check(&channel).await,
        &[&format!("{one}: "), &format!("{other}: "), "refused"],
    );
}

/// An address that nobody listens at.
fn unused_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let authority = Authority::new();
    let identity = authority.identity(CATALOG);
    let server = Server::start_silent(&identity).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));

    let address = server.address;
    let (lost, ()) = tokio::join!(check(&channel), async move {
        server.arrived.notified().await;
        drop(server);
    });
    assert_unavailable(lost, &["catalog-service at"]);

    let _server = Server::start_on(address, &identity, false).await;
    check(&channel).await.unwrap();
}

#[tokio::test]
async fn a_slow_answer_is_not_awaited_beyond_the_deadline() {
    let authority = Authority::new();
    let server = Server::start_silent(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let status = check_within(&channel, Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[tokio::test]
async fn a_stream_ends_at_the_deadline() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let mut client = HealthClient::new(channel(server.target(), &authority.identity(PURCHASE)));

    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(2));
    let mut stream = client.watch(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let end = tokio::time::timeout(PATIENCE, stream.message()).await;
    assert_eq!(end.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn nothing_is_sent_after_the_deadline() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let passed = Deadline::after(Duration::ZERO);
    let status = deadline::scope(Some(passed), check(&channel)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_inherited_deadline_shortens_the_timeout_of_a_call() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let inherited = Deadline::after(PATIENCE);

    deadline::scope(Some(inherited), check_within(&channel, 2 * PATIENCE)).await.unwrap();
    assert!(server.last_timeout() <= PATIENCE);

    deadline::scope(Some(inherited), check_within(&channel, PATIENCE / 2)).await.unwrap();
    assert!(server.last_timeout() <= PATIENCE / 2);
}

#[tokio::test]
async fn the_contract_bounds_a_call_that_states_no_timeout() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let mut client = StockServiceClient::new(channel);

    let status = client.reserve(ReserveRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    assert!(server.last_timeout() <= Duration::from_secs(2));

    let mut longer = tonic::Request::new(ReserveRequest::default());
    longer.set_timeout(Duration::from_mins(1));
    client.reserve(longer).await.unwrap_err();
    assert!(server.last_timeout() > Duration::from_secs(30));
}

/// Keeps the spans that have ended.
#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

#[tokio::test]
async fn a_call_is_a_span_of_the_trace_that_it_hands_on() {
    let spans = Spans::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
    // Another test may have met the span while nobody was interested.
    tracing::callsite::rebuild_interest_cache();
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    check(&channel).await.unwrap();

    let requests = server.requests.lock().unwrap();
    let traceparent = requests[0]["traceparent"].to_str().unwrap();
    let spans = spans.0.lock().unwrap();
    let span = spans
        .iter()
        .find(|span| {
            let context = &span.span_context;
            traceparent == format!("00-{}-{}-01", context.trace_id(), context.span_id())
        })
        .unwrap();
    assert_eq!(span.name, "grpc.health.v1.Health/Check");
    assert_eq!(span.span_kind, SpanKind::Client);
    let status_code = KeyValue::new("rpc.grpc.status_code", 0);
    assert!(span.attributes.contains(&status_code), "{span:?}");
}

#[tokio::test]
async fn a_channel_that_lacks_something_is_not_built() {
    let identity = Authority::new().identity(PURCHASE);
    let to = |target: &str| Channel::to(target).identity(identity.clone());
    let refusal = |builder: Builder| builder.build().unwrap_err().to_string();

    assert_eq!(
        refusal(to("k8s:///a:1").peer(CATALOG)),
        r#""k8s:///a:1" is no target: its scheme is not static:///; give static:///host:port[,host:port]..."#
    );
    assert_eq!(
        refusal(to("static:///a:1")),
        "the channel to static:///a:1 has no peer; name its SPIFFE ID with `peer`"
    );
    assert_eq!(
        refusal(to("static:///a:1").peer("catalog-service")),
        "the peer of static:///a:1 is not named: \"catalog-service\" is not a SPIFFE ID of the \
         form spiffe://<trust domain>/ns/<namespace>/sa/<workload>"
    );
    assert_eq!(
        refusal(Channel::to("static:///a:1").peer(CATALOG)),
        "the channel to static:///a:1 has no identity; give one with `identity`"
    );
}
