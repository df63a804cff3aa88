//! Connections: made within a time, kept alive, and asked what became of a request
//! that was not answered.

use std::{
    error::Error as StdError,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{CertificateError, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use crate::{Identity, SpiffeId, target::Address};

/// How long an address may take to accept a connection and to shake hands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection may be silent before it is asked whether it lives, and how
/// long it may take to say so: a peer that has vanished is given up after 15 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How many streams a connection has at most: what a server of the suite allows, so that
/// no call waits on one connection while there is room on another. The windows of so many
/// fit the window of the connection.
pub const MAX_STREAMS: u32 = 250;

/// How many bytes a peer may send ahead of what is read on one stream, in either
/// direction.
///
/// h2 closes a connection on which too many small frames wait to be read: each counts
/// for what it lacks of 256 bytes, and half the window of the connection is the most.
/// Callers that send a frame per message come there long before the window of a stream
/// as large as the connection's would hold them back. So that is a small part of it:
/// dozens of streams may be full of frames of 60 bytes, or three of frames of one.
pub const STREAM_WINDOW: u32 = 64 << 10;
/// How many bytes a peer may send ahead of what is read on all streams of a connection.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Streams that nobody reads never hold back the others of their connection.
const _: () = assert!(MAX_STREAMS * STREAM_WINDOW <= CONNECTION_WINDOW);

/// How many bytes of a request wait for a peer that does not read. The rest stays with
/// the caller, who learns that way to be slower.
const SEND_BUFFER: usize = 64 << 10;

/// Makes connections to one address, as the identity is at the time.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) address: Address,
    pub(crate) identity: Identity,
    pub(crate) peer: SpiffeId,
    /// Told when a connection that was full has room again.
    pub(crate) room: Arc<Notify>,
}

/// What a connection lives by: it must be polled, and ends with the reason why the
/// connection did. When it is dropped, or nobody can send any more, the streams that are
/// open live on to their own ends.
pub(crate) type Driver = Pin<Box<dyn Future<Output = String> + Send>>;

/// Why there is no connection.
pub(crate) struct NoConnection {
    /// What is wrong, for a person to read.
    pub(crate) reason: String,
    /// For how long calls believe it before they have the peer looked for again. To find
    /// that nobody is there costs next to nothing, and one that has just come back is
    /// called at once; what takes a handshake or a timeout to find out is believed.
    pub(crate) is_news_for: Duration,
}

type Chain = Vec<CertificateDer<'static>>;
type Open = (SendRequest<Body>, Chain, Driver);

impl Connector {
    pub(crate) async fn connect(self) -> Result<(Connection, Driver), NoConnection> {
        let room = Arc::clone(&self.room);
        match timeout(CONNECT_TIMEOUT, self.open()).await {
            Ok(Ok((sender, chain, driver))) => Ok((Connection::new(sender, chain, room), driver)),
            Ok(Err(error)) => {
                use io::ErrorKind::{ConnectionRefused, NotFound};
                let is_news_for = match error.kind() {
                    ConnectionRefused | NotFound => Duration::from_millis(20),
                    _ => Duration::MAX,
                };
                Err(NoConnection { reason: explain(&error), is_news_for })
            }
            Err(_) => {
                let reason = format!("no connection within {CONNECT_TIMEOUT:?}");
                Err(NoConnection { reason, is_news_for: Duration::MAX })
            }
        }
    }

    async fn open(self) -> io::Result<Open> {
        match &self.address {
            Address::Tcp { at, .. } => {
                let stream = TcpStream::connect(&**at).await?;
                // Requests are small; Nagle's algorithm would hold them back.
                stream.set_nodelay(true)?;
                self.shake_hands(stream).await
            }
            Address::Unix(path) => self.shake_hands(UnixStream::connect(path).await?).await,
        }
    }

    async fn shake_hands<I>(&self, stream: I) -> io::Result<Open>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let config = self.identity.client_config(self.peer.clone()).map_err(io::Error::other)?;
        let tls = TlsConnector::from(config);
        let stream = tls.connect(self.address.server_name(), stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let driver = async move {
            match connection.await {
                Ok(()) => LOST.to_owned(),
                Err(error) => loss(&error),
            }
        };
        Ok((sender, chain, Box::pin(driver)))
    }
}

/// One HTTP/2 connection.
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    /// The certificates that the peer has shown.
    chain: Chain,
    open_streams: AtomicUsize,
    /// Told when there is room for a stream again.
    room: Arc<Notify>,
    has_answered: AtomicBool,
    began: Instant,
}

/// A stream of a connection, which counts as open until it is dropped.
pub(crate) struct Stream(Arc<Connection>);

/// Why a request was not answered.
pub(crate) enum Unanswered {
    /// Nothing of it was sent; here it is again.
    Unsent(Box<Request<Body>>),
    /// The connection was going away, and its peer did not begin with it.
    Unbegun,
    /// The peer refused to begin with it.
    Refused,
    /// It may have had its effect.
    Lost(String),
}

impl Connection {
    fn new(sender: SendRequest<Body>, chain: Chain, room: Arc<Notify>) -> Self {
        let (open_streams, has_answered) = Default::default();
        Self { sender, chain, open_streams, room, has_answered, began: Instant::now() }
    }

    /// Whether no stream can be opened any more: it is lost or going away.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(crate) fn open_streams(&self) -> usize {
        self.open_streams.load(Ordering::Relaxed)
    }

    /// Whether one more stream may be opened.
    pub(crate) fn has_room(&self) -> bool {
        self.open_streams() < MAX_STREAMS as usize
    }

    /// Whether its peer is still trusted.
    pub(crate) fn is_trusted(&self, connector: &Connector) -> bool {
        let Connector { identity, peer, .. } = connector;
        let verified = identity.verify_server(peer, &self.chain);
        if let Err(error) = &verified {
            tracing::info!(endpoint = %connector.address, %error, "trusted no more");
        }
        verified.is_ok()
    }

    /// Whether it was good for anything: a call was answered, or it lived for so long.
    pub(crate) fn has_served(&self, or_lived: Duration) -> bool {
        self.has_answered.load(Ordering::Relaxed) || self.began.elapsed() > or_lived
    }

    pub(crate) fn open(self: &Arc<Self>) -> Stream {
        self.open_streams.fetch_add(1, Ordering::Relaxed);
        Stream(Arc::clone(self))
    }
}

impl Stream {
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let has_message = !http_body::Body::is_end_stream(request.body());
        let response = self.0.sender.clone().try_send_request(request);
        let response = response.await.map_err(|mut error| match error.take_message() {
            Some(request) => Unanswered::Unsent(Box::new(request)),
            None => judge(error.error(), has_message),
        })?;
        self.0.has_answered.store(true, Ordering::Relaxed);
        Ok(response)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.0.open_streams.fetch_sub(1, Ordering::Relaxed) >= MAX_STREAMS as usize {
            self.0.room.notify_one();
        }
    }
}

/// Tells from an error whether the peer can have begun with a request.
///
/// h2 gives a remote GOAWAY as the error of those streams alone that lie above its last
/// one, and of those that were about to be opened. Of the latter the headers may have been
/// sent, but no message yet; and the same is so when hyper drops a request, which is an
/// error "of the user", because the connection ended while it waited for the peer to
/// allow one more stream. A request that has no message is complete with its headers.
fn judge(error: &hyper::Error, has_message: bool) -> Unanswered {
    let cause = chain(error).find_map(|error| error.downcast_ref::<h2::Error>());
    let was_refused = cause.is_some_and(|cause| {
        cause.is_remote() && cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM)
    });
    let was_dropped =
        cause.map_or(error.is_user(), |cause| cause.is_remote() && cause.is_go_away());
    if was_refused {
        Unanswered::Refused
    } else if was_dropped && has_message {
        Unanswered::Unbegun
    } else {
        Unanswered::Lost(loss(error))
    }
}

const LOST: &str = "the connection was lost";

/// Says how a connection was lost, as far as that tells anything.
pub(crate) fn loss(error: &(dyn StdError + 'static)) -> String {
    let io_error = chain(error).find_map(|error| {
        let h2_error = error.downcast_ref::<h2::Error>();
        error.downcast_ref::<io::Error>().or_else(|| h2_error?.get_io())
    });
    // What h2 and rustls call the end of a connection that nobody announced.
    let is_end = |error: &&io::Error| {
        matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof)
    };
    match io_error.filter(|error| !is_end(error)) {
        Some(error) => format!("{LOST}: {}", explain(error)),
        None => LOST.to_owned(),
    }
}

/// An error and its sources.
fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn explain(error: &io::Error) -> String {
    let tls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls_error {
        None => error.to_string(),
        Some(rustls::Error::InvalidCertificate(problem)) => match problem {
            CertificateError::Other(reason) => format!("another peer answered: {reason}"),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate of the peer has expired".to_owned()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "no authority of the trust bundle issued the certificate of the peer".to_owned()
            }
            problem => format!("the certificate of the peer is refused: {problem}"),
        },
        Some(other) => other.to_string(),
    }
}
