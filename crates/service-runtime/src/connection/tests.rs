use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use client::IdentityFiles;
use futures::future::{BoxFuture, FutureExt, join_all};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::bytes::Bytes;
use proto::Policies;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::{body::Body, server::NamedService};

use super::*;
use crate::access_token::{Realm, TokenKeys, Verifier};

/// More than any of these tests takes, and less than a person waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a test waits for in vain.
const MOMENT: Duration = Duration::from_millis(200);
const QUICK: Patience = Patience {
    handshake: MOMENT,
    preface: MOMENT,
    unread: PATIENCE,
    goodbye: MOMENT,
    distrust: MOMENT,
};
const PATIENT: Patience = Patience {
    handshake: PATIENCE,
    preface: PATIENCE,
    unread: PATIENCE,
    goodbye: MOMENT,
    distrust: PATIENCE,
};
const ROOMY: Limits = Limits { half_open: 100, total: 100 };

const SERVER: &str = "spiffe://test.local/ns/shop/sa/catalog-service";
const CALLER: &str = "spiffe://test.local/ns/shop/sa/purchase-service";
/// What is called, and longer than any of these tests takes.
const CALL: &str = "/chandlery.catalog.v1.CatalogService/GetProduct";
const TIMEOUT: &str = "1H";
/// How much of an answer is sent to who does not read.
const WINDOW: u32 = 64 << 10;
/// The magic, and SETTINGS that set nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn far_away() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(4_000_000_000).unwrap()
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn files(&self, folder: &TempDir, spiffe_id: &str, not_after: OffsetDateTime) -> IdentityFiles {
        let mut parameters = CertificateParams::default();
        parameters.not_before = OffsetDateTime::UNIX_EPOCH;
        parameters.not_after = not_after;
        parameters.subject_alt_names = vec![SanType::URI(spiffe_id.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        let write = |name: &str, pem: String| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        IdentityFiles {
            certificate: write("tls.crt", certificate.pem()),
            private_key: write("tls.key", key.serialize_pem()),
            trust_bundle: write("ca.crt", self.0.pem()),
        }
    }

    fn caller(&self) -> Identity {
        self.caller_who_trusts(self)
    }

    fn caller_who_trusts(&self, other: &Self) -> Identity {
        let folder = TempDir::new().unwrap();
        let files = self.files(&folder, CALLER, far_away());
        std::fs::write(&files.trust_bundle, other.0.pem()).unwrap();
        Identity::load(&files).unwrap()
    }

    fn caller_until(&self, not_after: OffsetDateTime) -> Identity {
        let folder = TempDir::new().unwrap();
        Identity::load(&self.files(&folder, CALLER, not_after)).unwrap()
    }
}

/// A service whose calls end when the test says so. Its name is one of those that all
/// workloads may call.
#[derive(Clone, Default)]
struct Gate {
    /// The numbers of the calls that have begun.
    begun: Arc<Mutex<BTreeSet<u64>>>,
    has_begun: Arc<Notify>,
    open: CancellationToken,
    answer: Bytes,
}

impl NamedService for Gate {
    const NAME: &str = "chandlery.catalog.v1.CatalogService";
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let number = request.headers()["number"].to_str().unwrap().parse().unwrap();
        self.begun.lock().unwrap().insert(number);
        self.has_begun.notify_one();
        let Self { open, answer, .. } = self.clone();
        async move {
            open.cancelled().await;
            Ok(Response::new(Body::new(Full::new(answer).map_err(|never| match never {}))))
        }
        .boxed()
    }
}

/// A port for callers as a server has it.
struct Port {
    address: SocketAddr,
    files: IdentityFiles,
    gate: Gate,
    backlog: Backlog,
    drain: Drain,
    connections: TaskTracker,
    accepting: AbortOnDropHandle<()>,
    _folder: TempDir,
}

impl Port {
    async fn open(authority: &Authority, limits: Limits, patience: Patience) -> Self {
        Self::open_answering(authority, limits, patience, Bytes::new()).await
    }

    async fn open_answering(
        authority: &Authority,
        limits: Limits,
        patience: Patience,
        answer: Bytes,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let files = authority.files(&folder, SERVER, far_away());
        let identity = Identity::load(&files).unwrap();
        identity.keep_fresh();
        let renewals = identity.renewals();
        let (sender, tls) = watch::channel(identity.server_config().unwrap().into());
        let gate = Gate { answer, ..Gate::default() };
        let rules = Rules {
            policies: Policies::load().unwrap(),
            verifier: Verifier {
                realm: Realm::new("test.local", "shop"),
                keys: TokenKeys::new(|| async { Ok(Vec::new()) }.boxed()),
                clock: Clock::system(),
            },
            load: crate::call::Load::default(),
            trust_domain: "test.local".to_owned(),
            namespace: "shop".to_owned(),
        };
        let (backlog, drain) = (Backlog::default(), Drain::default());
        let callers = Callers {
            tls,
            identity: identity.clone(),
            clock: Clock::system(),
            routes: Routes::new(gate.clone()).prepare(),
            rules: Arc::new(rules),
            backlog: backlog.clone(),
            drain: drain.clone(),
            patience,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = TaskTracker::new();
        let tracker = connections.clone();
        let accepting = tokio::spawn(async move {
            let serve = |stream, slot| callers.clone().serve(stream, slot);
            tokio::select! {
                never = accept(listener, Slots::new(limits), &tracker, serve) => match never {},
                never = renew(&identity, renewals, sender) => match never {},
            }
        });
        let accepting = AbortOnDropHandle::new(accepting);
        Self { address, files, gate, backlog, drain, connections, accepting, _folder: folder }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn shake_hands(
        &self,
        identity: &Identity,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tls = identity.client_config(SERVER.parse().unwrap()).unwrap();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(tls).connect("127.0.0.1".try_into().unwrap(), stream).await
    }

    /// Opens a connection that calls can be made on, and the end of it.
    async fn call(&self, identity: &Identity) -> (Calls, JoinHandle<hyper::Result<()>>) {
        let stream = TokioIo::new(self.shake_hands(identity).await.unwrap());
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (calls, connection) =
            builder.initial_stream_window_size(WINDOW).handshake(stream).await.unwrap();
        (Calls(calls), tokio::spawn(connection))
    }

    fn drain(&self) {
        self.accepting.abort();
        self.drain.goaway.cancel();
        self.connections.close();
    }

    async fn keeps_no_answers(&self) {
        let empty = async {
            while !self.backlog.is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, empty).await.unwrap();
    }

    async fn is_drained(&self) {
        timeout(PATIENCE, self.connections.wait()).await.unwrap();
    }
}

#[derive(Clone)]
struct Calls(SendRequest<Full<Bytes>>);

impl Calls {
    /// Makes a call, and reads its answer.
    async fn call(&mut self, number: u64) -> hyper::Result<usize> {
        let response = self.begin(number).await?;
        assert_eq!(response.status(), 200);
        Ok(response.into_body().collect().await?.to_bytes().len())
    }

    async fn begin(&mut self, number: u64) -> hyper::Result<Response<hyper::body::Incoming>> {
        self.0.ready().await?;
        let request = Request::post(format!("http://test{CALL}"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", TIMEOUT)
            .header("number", number)
            .body(Full::default())
            .unwrap();
        self.0.send_request(request).await
    }
}

/// The HEADERS of a call, with the number of its stream.
fn request(stream: u8) -> Vec<u8> {
    // POST, https, and then literals, of which the names have a number or are written out.
    let mut fields = vec![0x83, 0x87];
    for (name, value) in [
        (&b"\x04"[..], CALL),
        (b"\x01", "test"),
        (b"\x0f\x10", "application/grpc"),
        (b"\0\x0cgrpc-timeout", TIMEOUT),
        (b"\0\x06number", &stream.to_string()),
    ] {
        fields.extend(name);
        fields.push(u8::try_from(value.len()).unwrap());
        fields.extend(value.as_bytes());
    }
    let length = u8::try_from(fields.len()).unwrap();
    [&[0, 0, length, 1, 0x05, 0, 0, 0, stream], &fields[..]].concat()
}

/// Waits for the other side to close, and says how long that took.
async fn closed(stream: &mut (impl AsyncRead + Unpin)) -> Duration {
    let begun = Instant::now();
    let mut read = [0; 1024];
    let reading = async { while matches!(stream.read(&mut read).await, Ok(1..)) {} };
    timeout(PATIENCE, reading).await.expect("nobody closes the connection");
    begun.elapsed()
}

#[tokio::test]
async fn who_says_nothing_is_gone_whatever_he_said_before() {
    let authority = Authority::new();
    let port = Port::open(&authority, ROOMY, QUICK).await;
    let caller = authority.caller();
    let mut silent = port.connect().await;
    let mut begun = port.connect().await;
    begun.write_all(&[22, 3, 1, 1]).await.unwrap();
    let mut shaken = port.shake_hands(&caller).await.unwrap();
    let mut half_said = port.shake_hands(&caller).await.unwrap();
    half_said.write_all(&PREFACE[..PREFACE.len() - 1]).await.unwrap();
    closed(&mut silent).await;
    closed(&mut begun).await;
    closed(&mut shaken).await;
    closed(&mut half_said).await;
    port.connections.close();
    port.is_drained().await;
}

#[tokio::test]
async fn who_says_something_else_is_gone_at_once() {
    let authority = Authority::new();
    let port = Port::open(&authority, ROOMY, PATIENT).await;
    let mut plain = port.connect().await;
    plain.write_all(PREFACE).await.unwrap();
    assert!(closed(&mut plain).await < PATIENCE / 2);
    let mut shaken = port.shake_hands(&authority.caller()).await.unwrap();
    shaken.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(closed(&mut shaken).await < PATIENCE / 2);
}

#[tokio::test]
async fn silent_peers_keep_nobody_out_and_as_many_callers_as_there_may_be_do() {
    let authority = Authority::new();
    let port = Port::open(&authority, Limits { half_open: 4, total: 5 }, PATIENT).await;
    port.gate.open.cancel();
    let caller = authority.caller();
    let mut callers = Vec::new();
    for number in 0..5 {
        let mut silent = join_all((0..10).map(|_| port.connect())).await;
        let (mut calls, connection) = port.call(&caller).await;
        assert_eq!(calls.call(number).await.unwrap(), 0);
        callers.push((calls, connection));
        // The oldest have given way, the newest wait.
        for stream in &mut silent[..6] {
            closed(stream).await;
        }
    }
    let mut sixth = port.connect().await;
    closed(&mut sixth).await;

    drop(callers.pop());
    let again = async {
        loop {
            if let Ok(mut stream) = port.shake_hands(&caller).await {
                stream.write_all(PREFACE).await.unwrap();
                if stream.read(&mut [0; 9]).await.is_ok_and(|length| length > 0) {
                    return;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn peers_without_calls_do_not_delay_a_drain() {
    let authority = Authority::new();
    let port = Port::open(&authority, ROOMY, PATIENT).await;
    let caller = authority.caller();
    let _silent = port.connect().await;
    let mut half_said = port.shake_hands(&caller).await.unwrap();
    half_said.write_all(&PREFACE[..30]).await.unwrap();
    let mut stopped = port.shake_hands(&caller).await.unwrap();
    stopped.write_all(PREFACE).await.unwrap();
    stopped.read_u8().await.unwrap();
    let (_calls, idle) = port.call(&caller).await;

    let begun = Instant::now();
    port.drain();
    port.is_drained().await;
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    idle.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_under_way_ends_before_the_drain_does_and_whoever_stops_reading_it_is_cut() {
    let authority = Authority::new();
    let answer = Bytes::from(vec![0; 300_000]);
    let port = Port::open_answering(&authority, ROOMY, QUICK, answer).await;
    let caller = authority.caller();
    let (mut calls, connection) = port.call(&caller).await;
    let (mut others, _connection) = port.call(&caller).await;
    let under_way = tokio::spawn(async move { calls.call(1).await });
    let unread = tokio::spawn(async move { (others.begin(2).await, others) });
    while port.gate.begun.lock().unwrap().len() < 2 {
        port.gate.has_begun.notified().await;
    }
    port.drain();
    assert!(timeout(4 * MOMENT, port.connections.wait()).await.is_err());
    port.gate.open.cancel();
    assert_eq!(under_way.await.unwrap().unwrap(), 300_000);
    connection.await.unwrap().unwrap();

    let _unread = unread.await.unwrap();
    assert!(timeout(4 * MOMENT, port.connections.wait()).await.is_err());
    port.drain.cut.cancel();
    port.is_drained().await;
}

#[tokio::test]
async fn who_asks_and_reads_nothing_is_gone() {
    let authority = Authority::new();
    // More than the buffers of the operating system hold.
    let answer = Bytes::from(vec![0; 32 << 20]);
    let patience = Patience { unread: MOMENT, ..PATIENT };
    let port = Port::open_answering(&authority, ROOMY, patience, answer).await;
    let mut unread = port.shake_hands(&authority.caller()).await.unwrap();
    unread.write_all(PREFACE).await.unwrap();
    // SETTINGS and WINDOW_UPDATE: as much of an answer as there is, and of all answers.
    unread.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x40\0\0\0").await.unwrap();
    unread.write_all(b"\0\0\x04\x08\0\0\0\0\0\x40\0\0\0").await.unwrap();
    unread.write_all(&request(1)).await.unwrap();
    port.gate.has_begun.notified().await;
    port.gate.open.cancel();
    port.connections.close();
    timeout(PATIENCE / 2, port.connections.wait()).await.unwrap();
    port.keeps_no_answers().await;
}

#[tokio::test]
async fn answers_count_until_they_are_sent() {
    let authority = Authority::new();
    let answer = Bytes::from(vec![0; 300_000]);
    let port = Port::open_answering(&authority, ROOMY, PATIENT, answer).await;
    port.gate.open.cancel();
    let (mut calls, _connection) = port.call(&authority.caller()).await;
    for number in 0..10 {
        assert_eq!(calls.call(number).await.unwrap(), 300_000);
    }
    port.keeps_no_answers().await;
}

/// On one thread: with more, hyper's client may say of a call which it has sent that the
/// peer is going away.
#[tokio::test]
async fn who_calls_on_through_a_drain_learns_what_was_never_begun() {
    let authority = Authority::new();
    let caller = authority.caller();
    let mut refused = 0;
    for _ in 0..40 {
        let port = Port::open(&authority, ROOMY, PATIENT).await;
        port.gate.open.cancel();
        let (calls, connection) = port.call(&caller).await;
        let mut callers = JoinSet::new();
        for caller in 0..8_u64 {
            let mut calls = calls.clone();
            callers.spawn(async move {
                for number in (caller..).step_by(8) {
                    if let Err(error) = calls.call(number).await {
                        return (number, error);
                    }
                }
                unreachable!("it never refuses")
            });
        }
        drop(calls);
        port.gate.has_begun.notified().await;
        port.drain();
        let ends = timeout(PATIENCE, callers.join_all()).await.unwrap();
        port.is_drained().await;
        let end = connection.await.unwrap();
        assert!(end.is_ok(), "{end:?}");
        let begun = port.gate.begun.lock().unwrap();
        for (number, error) in ends {
            assert!(!begun.contains(&number), "{number} was begun: {error:?}");
            refused += 1;
        }
    }
    assert_eq!(refused, 40 * 8);
}

#[tokio::test]
async fn the_last_words_are_heard_by_who_had_more_to_say() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    peer.write_all(b"what nobody reads").await.unwrap();
    stream.writable().await.unwrap();
    let mut said = 0;
    while let Ok(length) = stream.try_write(&[0; 4096]) {
        said += length;
    }
    let closing = tokio::spawn(async move { http2::close(&mut stream, PATIENCE).await });
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard.len(), said);
    drop(peer);
    timeout(PATIENCE / 2, closing).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_authority_that_is_removed_is_trusted_no_more_by_new_and_by_open_connections() {
    let (old, new) = (Authority::new(), Authority::new());
    let port = Port::open(&old, ROOMY, PATIENT).await;
    let old_caller = old.caller();
    // The server is still certified by the old authority, which all callers know it by.
    let new_caller = new.caller_who_trusts(&old);
    let open = async |identity| {
        let mut stream = port.shake_hands(identity).await?;
        stream.write_all(PREFACE).await?;
        stream.read_u8().await.map(|_| stream)
    };
    let (mut calls, connection) = port.call(&old_caller).await;
    let under_way = tokio::spawn(async move { calls.call(1).await });
    port.gate.has_begun.notified().await;
    let mut idle = open(&old_caller).await.unwrap();
    assert!(open(&new_caller).await.is_err());

    std::fs::write(&port.files.trust_bundle, [old.0.pem(), new.0.pem()].concat()).unwrap();
    let trusted = async {
        while open(&new_caller).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, trusted).await.unwrap();
    open(&old_caller).await.unwrap();
    assert!(timeout(MOMENT, idle.read_to_end(&mut Vec::new())).await.is_err());

    std::fs::write(&port.files.trust_bundle, new.0.pem()).unwrap();
    closed(&mut idle).await;
    assert!(open(&old_caller).await.is_err());
    open(&new_caller).await.unwrap();
    assert!(!under_way.is_finished());
    port.gate.open.cancel();
    assert_eq!(under_way.await.unwrap().unwrap(), 0);
    timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_of_its_caller() {
    let authority = Authority::new();
    let port = Port::open(&authority, ROOMY, QUICK).await;
    let now = Clock::system().now().as_micros() / 1_000_000;
    let not_after = OffsetDateTime::from_unix_timestamp(now + 2).unwrap();
    let (mut calls, connection) = port.call(&authority.caller_until(not_after)).await;
    let (_calls, lasting) = port.call(&authority.caller()).await;
    // It does not end by itself, and is cut.
    let under_way = tokio::spawn(async move { calls.call(1).await });
    timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    assert!(Clock::system().now().as_micros() / 1_000_000 > now + 2);
    under_way.await.unwrap().unwrap();
    assert!(!lasting.is_finished());
}

#[tokio::test]
async fn who_is_trusted_no_more_and_takes_no_leave_begins_no_more_calls() {
    let authority = Authority::new();
    let port = Port::open(&authority, ROOMY, PATIENT).await;
    let now = Clock::system().now().as_micros() / 1_000_000;
    let not_after = OffsetDateTime::from_unix_timestamp(now + 2).unwrap();
    let caller = authority.caller_until(not_after);
    let mut stream = port.shake_hands(&caller).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&request(1)).await.unwrap();
    port.gate.has_begun.notified().await;
    // The first stays under way, so that the connection does.
    let mut stream_number = 1;
    let refused = async {
        loop {
            // He has not so many numbers that he could call at full speed.
            sleep(MOMENT).await;
            stream_number += 2;
            stream.write_all(&request(stream_number)).await.unwrap();
            let begins = timeout(MOMENT, port.gate.has_begun.notified()).await.is_ok();
            if !begins && Clock::system().now().as_micros() / 1_000_000 > now + 2 {
                return;
            }
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
    assert!(!port.connections.is_empty());
}

#[tokio::test]
async fn a_probe_is_answered_among_those_who_ask_nothing() {
    let gate = Gate::default();
    gate.open.cancel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let probes = TaskTracker::new();
    let slots = Slots::new(Limits { half_open: 4, total: 4 });
    let accepting = accept(listener, slots, &probes, |stream, slot| {
        serve_probe(stream, slot, Routes::new(gate.clone()), Backlog::default())
    });
    let probing = async {
        // Some have asked, which gives them no right to stay.
        let mut asked = Vec::new();
        for number in 0..8 {
            let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
            let (calls, connection) = handshake(TokioExecutor::new(), stream).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut calls = Calls(calls);
            assert_eq!(calls.call(number).await.unwrap(), 0);
            asked.push((calls, connection));
            let mut silent = TcpStream::connect(address).await.unwrap();
            silent.write_all(b"PRI").await.unwrap();
        }
    };
    tokio::select! {
        never = accepting => match never {},
        ended = timeout(PATIENCE, probing) => ended.unwrap(),
    }
}
