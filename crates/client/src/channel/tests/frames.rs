//! A peer that is written frame by frame (RFC 9113), to break where a test says.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;
pub(super) const CANCEL: u32 = 8;

pub(super) struct Listener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
    /// The most streams that a caller may have open; no limit if it is none.
    max_streams: Option<u32>,
}

impl Listener {
    pub(super) async fn bind(identity: &Identity, max_streams: Option<u32>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = identity.server_config().unwrap().into();
        Self { socket, acceptor, max_streams }
    }

    pub(super) fn target(&self) -> String {
        format!("static:///{}", self.socket.local_addr().unwrap())
    }

    pub(super) async fn accept(&self) -> Peer {
        let (stream, _) = timeout(PATIENCE, self.socket.accept()).await.unwrap().unwrap();
        let mut peer = Peer(self.acceptor.accept(stream).await.unwrap());
        let mut preface = [0; 24];
        peer.0.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut settings = Vec::new();
        if let Some(max) = self.max_streams {
            // SETTINGS_MAX_CONCURRENT_STREAMS
            settings.extend([0, 3]);
            settings.extend(max.to_be_bytes());
        }
        peer.send(SETTINGS, 0, 0, &settings).await;
        peer.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()).await;
        peer
    }
}

pub(super) struct Peer(TlsStream<TcpStream>);

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Peer {
    /// Returns once the caller keeps to the limits of the listener. It must not have called.
    pub(super) async fn settle(&mut self) {
        self.next(|it| it.kind == SETTINGS && it.flags & ACK != 0).await;
    }

    /// The stream of the next request that has arrived to its end.
    pub(super) async fn request(&mut self) -> u32 {
        self.stream_of(|it| matches!(it.kind, DATA | HEADERS) && it.flags & END_STREAM != 0).await
    }

    /// The stream of the next request whose headers have arrived.
    pub(super) async fn headers(&mut self) -> u32 {
        self.stream_of(|it| it.kind == HEADERS).await
    }

    /// The stream that the caller resets next, and why.
    pub(super) async fn reset(&mut self) -> (u32, u32) {
        let frame = self.next(|it| it.kind == RST_STREAM).await;
        (frame.stream, u32::from_be_bytes(frame.payload.try_into().unwrap()))
    }

    pub(super) async fn refuse(&mut self, stream: u32) {
        self.send(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes()).await;
    }

    pub(super) async fn go_away(&mut self, last_stream: u32) {
        let payload = [last_stream.to_be_bytes(), [0; 4]].concat();
        self.send(GOAWAY, 0, 0, &payload).await;
    }

    pub(super) async fn begin_answer(&mut self, stream: u32) {
        let headers = [b"\x88".to_vec(), header("content-type", "application/grpc")].concat();
        self.send(HEADERS, END_HEADERS, stream, &headers).await;
        self.send(DATA, 0, stream, &[0; 5]).await;
    }

    pub(super) async fn answer(&mut self, stream: u32) {
        self.begin_answer(stream).await;
        let trailers = header("grpc-status", "0");
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &trailers).await;
    }

    async fn stream_of(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> u32 {
        self.next(is_wanted).await.stream
    }

    async fn next(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> Frame {
        let next = async {
            loop {
                let frame = self.read().await;
                match frame.kind {
                    SETTINGS if frame.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                    PING if frame.flags & ACK == 0 => self.send(PING, ACK, 0, &frame.payload).await,
                    _ if is_wanted(&frame) => return frame,
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, next).await.expect("no such frame came")
    }

    async fn read(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let [length @ .., kind, flags, one, two, three, four] = head;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        Frame { kind, flags, stream: u32::from_be_bytes([one, two, three, four]), payload }
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[&head, payload].concat()).await.unwrap();
        self.0.flush().await.unwrap();
    }
}

/// A header field without compression (RFC 7541, section 6.2.2).
fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}
