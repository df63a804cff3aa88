use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{client, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};
use tonic::server::NamedService;

use super::*;
use crate::{
    Clock,
    access_token::{Realm, TokenKeys},
};

const RESERVE: &str = "/chandlery.catalog.v1.StockService/Reserve";
const GET_PRODUCT: &str = "/chandlery.catalog.v1.CatalogService/GetProduct";
const CREATE_PRODUCT: &str = "/chandlery.catalog.v1.CatalogService/CreateProduct";
const EXPORT_PRODUCTS: &str = "/chandlery.catalog.v1.CatalogService/ExportProducts";
const IMPORT_PRODUCTS: &str = "/chandlery.catalog.v1.CatalogService/ImportProducts";
const WATCH_PRODUCTS: &str = "/chandlery.catalog.v1.CatalogService/WatchProducts";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

const OPERATOR: [&str; 3] = ["chandlery.local", "chandlery", "chandlery"];
const DEADLINE: Duration = Duration::from_secs(2);
const AFTER_DEADLINE: Duration = Duration::from_millis(2_001);

fn rules(load: Load) -> Rules {
    Rules {
        policies: Policies::load().unwrap(),
        trust_domain: "chandlery.local".to_owned(),
        namespace: "chandlery".to_owned(),
        verifier: Verifier {
            realm: Realm::new("chandlery.local", "chandlery"),
            keys: TokenKeys::new(|| Box::pin(async { Ok(Vec::new()) })),
            clock: Clock::system(),
        },
        load,
    }
}

fn admit(path: &str, peer: Option<[&str; 3]>) -> Result<Option<Duration>, Code> {
    let rules = rules(Load::default());
    let peer = peer
        .map(|[domain, namespace, workload]| SpiffeId::new(domain, namespace, workload).unwrap());
    let admitted = rules.admit(path, peer.as_ref());
    let default = |admission: Admission<'_>| admission.policy.map(|it| it.default_deadline);
    admitted.map(default).map_err(|status| status.code())
}

#[test]
fn only_the_workloads_that_the_contract_names_are_admitted() {
    let named = Some(["chandlery.local", "chandlery", "purchase-service"]);
    let other = Some(["chandlery.local", "chandlery", "user-service"]);
    assert_eq!(admit(RESERVE, named), Ok(Some(Duration::from_secs(2))));
    assert_eq!(admit(RESERVE, other), Err(Code::PermissionDenied));
    assert!(admit(GET_PRODUCT, other).is_ok());
}

#[test]
fn a_name_counts_in_the_own_trust_domain_and_namespace_alone() {
    for foreign in [["elsewhere", "chandlery"], ["chandlery.local", "other"]] {
        let peer = Some([foreign[0], foreign[1], "purchase-service"]);
        assert_eq!(admit(RESERVE, peer), Err(Code::PermissionDenied));
        assert_eq!(admit(HEALTH_CHECK, peer), Err(Code::PermissionDenied));
    }
    assert_eq!(admit(RESERVE, None), Err(Code::Unauthenticated));
}

#[test]
fn health_and_reflection_are_open_to_the_suite_and_nothing_else_is() {
    let anyone = Some(["chandlery.local", "chandlery", "anyone"]);
    assert_eq!(admit("/grpc.health.v1.Health/Watch", anyone), Ok(None));
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    assert_eq!(admit(reflection, anyone), Ok(None));
    assert_eq!(admit("/an.other.v1.Service/Call", anyone), Err(Code::Unimplemented));
}

/// Serves the catalog with a function.
#[derive(Clone)]
struct Catalog(Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, Body> + Send + Sync>);

impl NamedService for Catalog {
    const NAME: &'static str = "chandlery.catalog.v1.CatalogService";
}

impl Service<Request<Body>> for Catalog {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin((self.0)(request).map(|body| Ok(Response::new(body))))
    }
}

/// The calls of the operator to a catalog.
fn calls<F>(
    load: &Load,
    drain: &Drain,
    handle: impl Fn(Request<Body>) -> F + Send + Sync + 'static,
) -> Call
where
    F: Future<Output = Body> + Send + 'static,
{
    let catalog = Catalog(Arc::new(move |request| handle(request).boxed()));
    let [domain, namespace, workload] = OPERATOR;
    let peer = SpiffeId::new(domain, namespace, workload).unwrap();
    Call::new(Routes::new(catalog), Arc::new(rules(load.clone())), Some(peer), drain.clone())
}

/// A request that is over after [`DEADLINE`].
fn request(path: &str) -> Request<Body> {
    Request::post(format!("https://catalog{path}"))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "2S")
        .body(Body::empty())
        .unwrap()
}

fn frames(frames: impl Stream<Item = Frame<Bytes>> + Send + 'static) -> Body {
    Body::new(StreamBody::new(frames.map(Ok::<_, Status>)))
}

fn data(bytes: usize) -> Frame<Bytes> {
    Frame::data(Bytes::from(vec![0; bytes]))
}

fn trailers() -> Frame<Bytes> {
    let mut trailers = http::HeaderMap::new();
    Status::ok("").add_header(&mut trailers).unwrap();
    Frame::trailers(trailers)
}

/// A message and its end.
fn whole() -> Body {
    frames(stream::iter([data(64), trailers()]))
}

/// Messages for ever, for as long as somebody takes them; what is `held` is dropped with
/// them.
fn endless(held: Arc<()>) -> Body {
    frames(stream::repeat(held).map(|_| data(32 << 10)))
}

/// One message, and then none for ever.
fn silent() -> Body {
    frames(stream::iter([data(64)]).chain(stream::pending()))
}

fn end_of(response: &Response<Body>) -> Option<Code> {
    Status::from_header_map(response.headers()).map(|status| status.code())
}

async fn next(body: &mut Body) -> Frame<Bytes> {
    body.frame().await.unwrap().unwrap()
}

fn status_of(trailers: Frame<Bytes>) -> Status {
    Status::from_header_map(&trailers.into_trailers().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_the_token_of_its_user() {
    let after = |seconds| Some(Deadline::after(Duration::from_secs(seconds)));
    let end = End { deadline: after(60), token_expiry: after(2), cut: CancellationToken::new() };
    let scope = Scope { deadline: after(60), token: None, span: Span::none() };
    let body = frames(stream::pending());
    let mut answer = Body::new(Answer::stream(body, scope, None, None, end.reached()));
    let begun = Instant::now();
    let status = status_of(next(&mut answer).await);
    assert_eq!(error::reason(&status).as_deref(), Some("TOKEN_EXPIRED"));
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    assert!(answer.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_stops_keeps_nothing_beyond_the_deadline_and_learns_it_when_he_reads_on() {
    let load = Load::default();
    let held = Arc::new(());
    let held_by_call = Arc::downgrade(&held);
    let handle = move |_| {
        let body = endless(Arc::clone(&held));
        async move { body }
    };
    let call = calls(&load, &Drain::default(), handle);
    let (client, server) = tokio::io::duplex(4 << 10);
    let service = service_fn(move |request| call.clone().serve(request));
    let serving = server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(server), service);
    tokio::spawn(serving);
    let (mut sender, connection) = client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 10)
        .handshake::<_, Body>(TokioIo::new(client))
        .await
        .unwrap();
    tokio::spawn(connection);

    let response = sender.send_request(request(EXPORT_PRODUCTS)).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!((load.under_way(), held_by_call.strong_count()), ([0, 1], 2));
    sleep(DEADLINE).await;
    // What remains of `held` is the handler's own.
    assert_eq!((load.under_way(), held_by_call.strong_count()), ([0, 0], 1));

    let rest = response.into_body().collect().await.unwrap();
    let status = Status::from_header_map(rest.trailers().unwrap()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(rest.to_bytes().len() <= 3 * (32 << 10));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_nobody_reads_lets_go_when_the_service_drains() {
    let (load, drain) = (Load::default(), Drain::default());
    let held = Arc::new(());
    let handle = {
        let held = Arc::clone(&held);
        move |_| std::future::ready(endless(Arc::clone(&held)))
    };
    let call = calls(&load, &drain, handle);
    let mut watch = call.clone().serve(request(WATCH_PRODUCTS)).await.unwrap().into_body();
    let mut export = call.serve(request(EXPORT_PRODUCTS)).await.unwrap().into_body();
    next(&mut watch).await;
    next(&mut export).await;
    drain.goaway.cancel();
    sleep(Duration::from_millis(1)).await;
    assert_eq!((load.under_way(), Arc::strong_count(&held)), ([0, 1], 2));
    assert_eq!(status_of(next(&mut watch).await).code(), Code::Unavailable);
    drain.cut.cancel();
    sleep(Duration::from_millis(1)).await;
    assert_eq!((load.under_way(), Arc::strong_count(&held)), ([0, 0], 1));
    assert_eq!(status_of(next(&mut export).await).code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_stops_sending_is_answered_at_the_deadline_and_holds_nothing() {
    let load = Load::default();
    let held = Arc::new(());
    let handle = async |request: Request<Body>| {
        // As an import does.
        let _ = request.into_body().collect().await;
        whole()
    };
    let call = calls(&load, &Drain::default(), handle);
    let stalled = stream::repeat(Arc::clone(&held)).then(|_| std::future::pending());
    let request = request(IMPORT_PRODUCTS).map(|_| frames(stalled));
    let begun = Instant::now();
    let answer = call.serve(request).await.unwrap();
    assert_eq!(end_of(&answer), Some(Code::DeadlineExceeded));
    assert_eq!(begun.elapsed(), DEADLINE);
    assert_eq!((load.under_way(), Arc::strong_count(&held)), ([0, 0], 1));
}

#[tokio::test]
async fn too_many_calls_are_refused_before_anything_is_asked_of_them_and_health_is_not() {
    let load = Load::of(1, 1);
    let call = calls(&load, &Drain::default(), async |_| silent());
    let other = SpiffeId::new("chandlery.local", "chandlery", "other").unwrap();
    let _place = load.admit(Kind::Unary, &other).unwrap();
    let serve = async |path| end_of(&call.clone().serve(request(path)).await.unwrap());
    // It has no proof of its end user either.
    assert_eq!(serve(CREATE_PRODUCT).await, Some(Code::ResourceExhausted));
    // The catalog does not serve health, and was asked for it.
    assert_eq!(serve(HEALTH_CHECK).await, Some(Code::Unimplemented));
    assert_eq!(serve(EXPORT_PRODUCTS).await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_called_meanwhile_has_less_time_and_what_goes_on_afterwards_has_its_own() {
    let remaining = || deadline::current().map(Deadline::remaining);
    let handle = move |_| async move {
        sleep(Duration::from_millis(500)).await;
        let handler = remaining();
        let spawned = tokio::spawn(async move { remaining() }).await.unwrap();
        let polled = stream::once(async move {
            sleep(Duration::from_millis(500)).await;
            let seen = [handler, spawned, remaining()];
            Frame::data(Bytes::from(format!("{seen:?}")))
        });
        frames(polled)
    };
    for path in [EXPORT_PRODUCTS, GET_PRODUCT] {
        let call = calls(&Load::default(), &Drain::default(), handle);
        let mut body = call.serve(request(path)).await.unwrap().into_body();
        let seen = next(&mut body).await.into_data().unwrap();
        assert_eq!(seen, "[Some(1.5s), None, Some(1s)]", "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_an_end_has_it_within_the_hour_and_a_watch_may_go_on() {
    let call = calls(&Load::default(), &Drain::default(), async |_| silent());
    let begin = async |path| {
        let mut request = request(path);
        request.headers_mut().insert("grpc-timeout", "9H".parse().unwrap());
        let mut body = call.clone().serve(request).await.unwrap().into_body();
        next(&mut body).await;
        body
    };
    let (mut export, mut watch) = (begin(EXPORT_PRODUCTS).await, begin(WATCH_PRODUCTS).await);
    let begun = Instant::now();
    assert_eq!(status_of(next(&mut export).await).code(), Code::DeadlineExceeded);
    assert_eq!(begun.elapsed(), LONGEST_CALL);
    assert_eq!(status_of(next(&mut watch).await).code(), Code::DeadlineExceeded);
    assert_eq!(begun.elapsed(), 9 * LONGEST_CALL);
}

/// How a call goes.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Its answer is read to the end.
    Read,
    /// Its caller reads some of the answer and goes away.
    Left,
    /// Its caller reads some of the answer and no more.
    Stalled,
    /// Its handler hangs, until the deadline.
    Late,
    /// Its handler hangs, until the caller goes away.
    Cancelled,
}

proptest! {
    #[test]
    fn however_calls_end_none_is_counted_after_its_deadline(
        calls_made in prop::collection::vec((any::<bool>(), 0..5_usize), 0..32),
    ) {
        const FATES: [Fate; 5] =
            [Fate::Read, Fate::Left, Fate::Stalled, Fate::Late, Fate::Cancelled];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            // A few are refused.
            let load = Load::of(24, 24);
            let mut left_over = Vec::new();
            for (streaming, fate) in calls_made {
                let fate = FATES[fate];
                let handle = move |_| async move {
                    match fate {
                        Fate::Read => whole(),
                        Fate::Left | Fate::Stalled => silent(),
                        Fate::Late | Fate::Cancelled => std::future::pending().await,
                    }
                };
                let call = calls(&load, &Drain::default(), handle);
                let path = if streaming { EXPORT_PRODUCTS } else { GET_PRODUCT };
                let mut serving = Box::pin(call.serve(request(path)));
                match fate {
                    Fate::Read => {
                        let _ = serving.await.unwrap().into_body().collect().await;
                    }
                    Fate::Left | Fate::Stalled => {
                        let mut body = serving.await.unwrap().into_body();
                        let _ = body.frame().await;
                        if matches!(fate, Fate::Stalled) {
                            left_over.push(body);
                        }
                    }
                    Fate::Late => {
                        tokio::spawn(serving);
                    }
                    Fate::Cancelled => {
                        let _ = serving.as_mut().now_or_never();
                    }
                }
            }
            sleep(AFTER_DEADLINE).await;
            assert_eq!(load.under_way(), [0, 0]);
            drop(left_over);
        });
    }
}
