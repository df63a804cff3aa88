//! HTTP/2 on a connection whose preface has come: what a peer may ask for at most, and
//! the end, which no peer can delay.

use std::{convert::Infallible, future::Future, pin::pin, time::Duration};

use client::{CONNECTION_WINDOW, STREAM_WINDOW};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::http2::{Builder, Connection},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tracing::Span;

use super::{Drain, Patience, backlog::Backlog, stalled};

/// How many calls a caller may have under way on one connection. A caller of more opens
/// another; how many there may be in one process is for [`Load`](crate::call::Load) to
/// say.
pub(super) const CALLER_STREAMS: u32 = client::MAX_STREAMS;
/// A probe asks one thing.
pub(super) const PROBE_STREAMS: u32 = 4;

/// The most bytes of metadata, decoded, that are read at all. What is more than a call
/// may have and less than this is refused in words, and not by closing the stream. h2
/// derives from it how many CONTINUATION frames may follow one another: five.
const HEADER_LIST_LIMIT: u32 = 64 << 10;

/// How many bytes of an answer h2 takes ahead of what it can send, on one stream: a frame.
/// Its own 400 KB are for links across the world, and 400 MB for a peer that reads
/// nothing.
const SEND_BUFFER: usize = 16 << 10;

/// How long a connection may be silent before the peer is asked whether it lives, and how
/// long it may take to say so. Who is stopped or cut off is gone after half a minute,
/// before the calls of most callers reach their deadline.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub(super) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long answers may take to leave once their calls have been cut.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// On what terms a connection is served.
pub(super) struct Terms {
    pub(super) streams: u32,
    pub(super) drain: Drain,
    pub(super) patience: Patience,
    pub(super) backlog: Backlog,
}

/// Serves the calls of one connection to its end. `preface` was read already.
pub(super) async fn serve<S, H, F>(stream: &mut S, preface: &[u8], terms: Terms, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let Terms { streams, drain, patience, backlog } = terms;
    let calls = TaskTracker::new();
    calls.close();
    let service = service_fn(|request| {
        let (call, backlog) = (calls.token(), backlog.clone());
        let answer = handle(request);
        async move {
            let mut answer = answer.await?;
            // A probe has none.
            let span = answer.extensions_mut().remove().unwrap_or_else(Span::none);
            Ok::<_, Infallible>(answer.map(|body| backlog.hold(body, call, span)))
        }
    });
    let (reader, writer) = io::split(stream);
    let writer = stalled::Writer::new(writer, patience.unread);
    let stream = TokioIo::new(io::join(preface.chain(reader), writer));
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .max_header_list_size(HEADER_LIST_LIMIT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        // Whoever gives up all that he may have begun at once is no attacker.
        .max_pending_accept_reset_streams(streams as usize)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(stream, service));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = backlog.stuck() => return tracing::debug!("the peer takes no answers"),
        () = drain.goaway.cancelled() => {
            Connection::graceful_shutdown(connection.as_mut());
            // hyper waits for the peer to confirm, which it may never do.
            tokio::select! {
                outcome = connection => outcome,
                () = idle(&calls, patience.goodbye) => return tracing::debug!("the peer takes no leave"),
                () = cut(&drain) => return tracing::debug!("the peer reads no answers"),
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection broke");
    }
}

/// Returns when no call has been under way for so long.
async fn idle(calls: &TaskTracker, duration: Duration) {
    loop {
        calls.wait().await;
        sleep(duration).await;
        if calls.is_empty() {
            return;
        }
    }
}

async fn cut(drain: &Drain) {
    drain.cut.cancelled().await;
    sleep(FLUSH_TIMEOUT).await;
}

/// Closes a connection for good. What a peer still sends is read for a while: a socket
/// that is closed with unread bytes is reset, and that may destroy what the peer has not
/// read yet, the last answers and the GOAWAY by which it knows what was never begun.
pub(super) async fn close<S>(stream: &mut S, patience: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let closing = async {
        let _ = stream.shutdown().await;
        io::copy(stream, &mut io::sink()).await
    };
    let _ = timeout(patience, closing).await;
}
