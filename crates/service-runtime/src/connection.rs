//! Connections: accepted, shaken hands with, served, and told to go away.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use client::SpiffeId;
use http::Request;
use http_body::Body as HttpBody;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tower::Service;

use crate::call::{Call, Rules};

/// How long a peer may take over its TLS handshake, and a probe over its first
/// question.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before accepting again when accepting fails, which it does when
/// the process runs out of descriptors.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);
/// The most bytes of metadata, decoded, that are read at all. What is more than a call
/// may have and less than this is refused in words, and not by closing the stream.
const HEADER_LIST_LIMIT: u32 = 64 << 10;

/// How many bytes a caller may send ahead of what is read, on one stream and on all.
///
/// h2 closes a connection on which too many small frames wait to be read: each counts
/// for what it lacks of 256 bytes, and half the window of the connection is the most.
/// Callers that send a frame per message come there long before the window of a stream
/// as large as the connection's would hold them back. So that is a small part of it:
/// dozens of streams may be full of frames of 60 bytes, or three of frames of one.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How connections and calls learn that the server drains.
#[derive(Clone, Default)]
pub(crate) struct Drain {
    /// Begin no new call, and end those that have no end of their own.
    pub(crate) goaway: CancellationToken,
    /// End every call.
    pub(crate) cut: CancellationToken,
}

/// Accepts connections for ever and serves each in a task of its own.
pub(crate) async fn accept<F>(
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

/// Shakes hands with a caller and serves its calls.
pub(crate) async fn serve_caller(
    stream: TcpStream,
    tls: TlsAcceptor,
    routes: Routes,
    rules: Arc<Rules>,
    drain: Drain,
) {
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

/// Answers a probe. Anybody can connect to its port, but a probe has something to
/// ask.
pub(crate) async fn serve_probe(stream: TcpStream, routes: Routes) {
    let has_asked = CancellationToken::new();
    let answer = |request| {
        has_asked.cancel();
        routes.clone().call(request)
    };
    let silent = async {
        time::sleep(HANDSHAKE_TIMEOUT).await;
        if has_asked.is_cancelled() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = serve_connection(stream, Drain::default(), answer) => {}
        () = silent => tracing::debug!("a connection asked nothing"),
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
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<http::Response<B>, Infallible>> + Send + 'static,
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = service_fn(handle);
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(1024)
            .max_header_list_size(HEADER_LIST_LIMIT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
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
