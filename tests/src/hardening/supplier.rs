//! A catalog of a test's own, which says little and keeps record of what it was asked, and
//! of when its callers lost interest.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use chandlery::{certs, service::Service, suite::Suite};
use client::{Identity, deadline};
use futures::stream;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Frame, Incoming},
    header::HeaderValue,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::bytes::Bytes;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::AbortHandle,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

/// How long a call may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A catalog. Gone when it is dropped.
pub(super) struct Supplier {
    asked: watch::Receiver<Vec<Asked>>,
    serving: AbortHandle,
}

/// A call that came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The name of the RPC.
    pub(super) rpc: String,
    /// How long its caller meant to wait.
    pub(super) timeout: Option<Duration>,
    /// When it was over, for whatever reason.
    pub(super) ended: Option<Instant>,
}

type Record = Arc<watch::Sender<Vec<Asked>>>;

impl Supplier {
    /// Where a supplier can serve, once there is a suite for it to be of.
    pub(super) async fn place() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Serves as the catalog of the suite.
    pub(super) fn serve(listener: TcpListener, suite: &Suite) -> Self {
        let files = certs::identity_files(&suite.certificates(), Service::Catalog.name());
        let identity = Identity::load(&files).unwrap();
        let tls = TlsAcceptor::from(identity.server_config().unwrap());
        let record = Record::default();
        let asked = record.subscribe();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, record) = (tls.clone(), Arc::clone(&record));
                tokio::spawn(async move {
                    let stream = TokioIo::new(tls.accept(stream).await?);
                    let answer = service_fn(|request| {
                        let answer = answer(&request, &record);
                        async { Ok::<_, Infallible>(answer) }
                    });
                    let builder = http2::Builder::new(TokioExecutor::new());
                    // How a connection ends is nobody's business here.
                    let _ = builder.serve_connection(stream, answer).await;
                    Ok::<_, std::io::Error>(())
                });
            }
        });
        Self { asked, serving: serving.abort_handle() }
    }

    /// Waits for the call of an RPC that is the next after so many of any.
    pub(super) async fn asked_after(&mut self, calls: usize, rpc: &str) -> (usize, Asked) {
        let position = |asked: &Vec<Asked>| {
            let found = asked.iter().skip(calls).position(|asked| asked.rpc == rpc);
            found.map(|found| calls + found)
        };
        let came = self.asked.wait_for(|asked| position(asked).is_some());
        let asked = timeout(PATIENCE, came).await.expect("it is asked in time").unwrap();
        let position = position(&asked).unwrap();
        (position, asked[position].clone())
    }

    /// Waits for the end of a call.
    pub(super) async fn end_of(&mut self, position: usize) -> Option<Instant> {
        let over = self.asked.wait_for(|asked| asked[position].ended.is_some());
        timeout(PATIENCE, over).await.ok()?.unwrap()[position].ended
    }

    /// How many calls came so far.
    pub(super) fn calls(&self) -> usize {
        self.asked.borrow().len()
    }
}

impl Drop for Supplier {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A call that is on record, and over when this is dropped.
struct Call {
    record: Record,
    position: usize,
}

impl Drop for Call {
    fn drop(&mut self) {
        let now = Some(Instant::now());
        self.record.send_modify(|asked| asked[self.position].ended = now);
    }
}

/// Answers a watch with silence, and whatever else with an empty message.
fn answer(request: &Request<Incoming>, record: &Record) -> Response<BoxBody<Bytes, Infallible>> {
    let rpc = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let timeout = deadline::requested_timeout(request.headers()).unwrap();
    let is_watch = rpc == "WatchProducts";
    let mut position = 0;
    record.send_modify(|asked| {
        position = asked.len();
        asked.push(Asked { rpc, timeout, ended: None });
    });
    let call = Call { record: Arc::clone(record), position };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let whole = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
    let frames = stream::unfold((call, whole.into_iter()), move |(call, mut rest)| async move {
        if is_watch {
            std::future::pending::<()>().await;
        }
        Some((Ok(rest.next()?), (call, rest)))
    });
    let body = BodyExt::boxed(StreamBody::new(frames));
    let content_type = ("content-type", "application/grpc");
    Response::builder().header(content_type.0, content_type.1).body(body).unwrap()
}
