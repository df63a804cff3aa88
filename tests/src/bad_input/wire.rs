//! Requests as bytes over HTTP/2, with nothing between that would mend them.

use std::{collections::BTreeMap, time::Duration};

use chandlery::{
    certs::{NAMESPACE, TRUST_DOMAIN},
    service::Service,
    suite::Credential,
};
use client::SpiffeId;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Response,
    body::{Frame, Incoming},
    client::conn::http2::{self, SendRequest},
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::bytes::{Buf, Bytes, BytesMut};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::Status;

use crate::shop::Shop;

/// The workload that may call almost anything.
pub(super) const OPERATOR: &str = "chandlery";
/// A workload that calls on behalf of end users, and casts votes.
pub(super) const WORKLOAD: &str = "purchase-service";

/// The most bytes of metadata that the clients of other languages read by default.
const METADATA_LIMIT: u32 = 8 << 10;
/// Longer than any call takes that ends by itself.
const PATIENCE: Duration = Duration::from_mins(1);

/// A service, and the workload that calls it.
pub(super) type Line = (Service, &'static str);

/// A call as it goes out.
pub(super) struct Request {
    pub(super) line: Line,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// A call of an RPC, without a body yet.
    pub(super) fn new(line: Line, path: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        Self { line, method: Method::POST, path: path.to_owned(), headers, body: Vec::new() }
    }

    /// Sets a header, in place of one that is there.
    pub(super) fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.headers.remove(name);
        self.add(name, value);
    }

    /// Adds a header, beside one that is there.
    pub(super) fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = HeaderValue::from_bytes(value.as_ref()).unwrap();
        self.headers.append(name.parse::<HeaderName>().unwrap(), value);
    }
}

/// What came back.
pub(super) enum Answer {
    /// A whole answer; without a status if it had none.
    Ended {
        /// What gRPC says.
        status: Option<Status>,
        /// The messages before it.
        messages: Vec<Bytes>,
    },
    /// Half an answer, or none.
    Broken(String),
}

/// A connection for every line.
pub(super) struct Lines<'a> {
    shop: &'a Shop,
    open: BTreeMap<Line, SendRequest<Full<Bytes>>>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(shop: &'a Shop) -> Self {
        Self { shop, open: BTreeMap::new() }
    }

    /// Opens the lines that are not open, or no longer.
    pub(super) async fn open(&mut self) {
        self.open.retain(|_, sender| !sender.is_closed());
        for service in Service::ALL {
            for workload in [OPERATOR, WORKLOAD] {
                if !self.open.contains_key(&(service, workload)) {
                    let sender = self.connect(service, workload).await;
                    self.open.insert((service, workload), sender);
                }
            }
        }
    }

    async fn connect(&self, service: Service, workload: &str) -> SendRequest<Full<Bytes>> {
        let identity = self.shop.suite.identity(Credential::Workload(workload)).unwrap();
        let peer = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, service.name()).unwrap();
        let tls = TlsConnector::from(identity.client_config(peer).unwrap());
        let address = self.shop.suite.address(service);
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = TokioIo::new(tls.connect(address.ip().into(), stream).await.unwrap());
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(METADATA_LIMIT)
            .handshake(stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Sends a request and reads its answer to the end.
    pub(super) async fn send(&self, request: &Request) -> Answer {
        let uri = format!("https://{}{}", self.shop.suite.address(request.line.0), request.path);
        let mut call = hyper::Request::new(Full::from(request.body.clone()));
        *call.method_mut() = request.method.clone();
        *call.uri_mut() = uri.parse().unwrap();
        *call.headers_mut() = request.headers.clone();
        let mut sender = self.open[&request.line].clone();
        let answer = async {
            match sender.send_request(call).await {
                Ok(response) => read(response).await,
                Err(error) => Answer::Broken(format!("{error:?}")),
            }
        };
        let silent = |_| Answer::Broken(format!("it has not ended after {PATIENCE:?}"));
        timeout(PATIENCE, answer).await.unwrap_or_else(silent)
    }
}

async fn read(response: Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let mut status = Status::from_header_map(&head.headers);
    let mut content = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => content.extend(data),
            Ok(Err(frame)) => {
                let trailers = frame.trailers_ref();
                status = status.or_else(|| trailers.and_then(Status::from_header_map));
            }
            Err(error) => return Answer::Broken(format!("{error:?}")),
        }
    }
    match messages(content.freeze()) {
        Some(messages) => Answer::Ended { status, messages },
        None => Answer::Broken("the answer is not framed as gRPC demands".to_owned()),
    }
}

fn messages(mut content: Bytes) -> Option<Vec<Bytes>> {
    let mut messages = Vec::new();
    while !content.is_empty() {
        let is_plain = content.try_get_u8().ok()? == 0;
        let length = usize::try_from(content.try_get_u32().ok()?).ok()?;
        if !is_plain || content.len() < length {
            return None;
        }
        messages.push(content.split_to(length));
    }
    Some(messages)
}
