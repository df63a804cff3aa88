//! A peer that speaks HTTP/2 frame by frame, over TLS or before it, so that it can leave
//! unsaid what a library would say, and say what none would.

pub mod frame;

use std::{io, net::SocketAddr, sync::Arc};

use chandlery::{
    certs::{NAMESPACE, TRUST_DOMAIN},
    service::Service,
    suite::{Credential, Suite},
};
use client::SpiffeId;
use rustls::{ClientConfig, ClientConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf, split},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use frame::{ACK, DATA, END_HEADERS, Frame, HEADERS, PING, PREFACE, SETTINGS};

/// Where to connect, and as whom. Cheap to clone.
#[derive(Clone)]
pub struct Line {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Line {
    /// To a service of a suite, as somebody with this certificate.
    pub fn new(suite: &Suite, service: Service, credential: Credential<'_>) -> Self {
        let identity = suite.identity(credential).unwrap();
        let peer = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, service.name()).unwrap();
        let tls = identity.client_config(peer).unwrap();
        Self { address: suite.address(service), tls }
    }

    /// Connects, and says nothing.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.address).await
    }

    /// Connects, begins to shake hands, and stops there.
    pub async fn hello(&self) -> io::Result<TcpStream> {
        let mut hello = Vec::new();
        let mut tls = ClientConnection::new(Arc::clone(&self.tls), self.address.ip().into())
            .map_err(io::Error::other)?;
        tls.write_tls(&mut hello)?;
        let mut stream = self.connect().await?;
        stream.write_all(&hello).await?;
        Ok(stream)
    }

    /// Connects and shakes hands, and says nothing more.
    pub async fn shake_hands(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = self.connect().await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(Arc::clone(&self.tls)).connect(self.address.ip().into(), stream).await
    }

    /// Opens an HTTP/2 connection with these settings.
    pub async fn open(&self, settings: &[(u16, u32)]) -> io::Result<Peer> {
        let (reader, writer) = split(self.shake_hands().await?);
        let reader = Reader(BufReader::new(reader));
        let mut writer = Writer { writer, next_id: 1 };
        writer.write(PREFACE).await?;
        writer.send([Frame::settings(settings)]).await?;
        Ok(Peer { reader, writer })
    }
}

/// A connection, of which both directions can be used on their own.
pub struct Peer {
    /// What the service says.
    pub reader: Reader,
    /// What the service is told.
    pub writer: Writer,
}

impl Peer {
    /// The next frame on a stream, or of the connection for stream 0; settings and pings
    /// are acknowledged meanwhile. None at the end of the connection.
    pub async fn next_on(&mut self, stream: u32) -> io::Result<Option<Frame>> {
        while let Some(frame) = self.reader.next().await? {
            if matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK == 0 {
                self.writer.send([frame.acknowledgement()]).await?;
            } else if frame.stream == stream {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Waits until the service has read all that it was told so far.
    pub async fn settle(&mut self) -> io::Result<()> {
        self.writer.send([Frame::ping()]).await?;
        while let Some(frame) = self.next_on(0).await? {
            if frame.kind == PING {
                return Ok(());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// The direction in which the service speaks.
pub struct Reader(BufReader<ReadHalf<TlsStream<TcpStream>>>);

impl Reader {
    /// The next frame; none at the end of the connection.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; frame::HEAD_LENGTH];
        match self.0.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let (mut frame, length) = Frame::parse(head);
        frame.payload.resize(length, 0);
        self.0.read_exact(&mut frame.payload).await?;
        Ok(Some(frame))
    }

    /// Reads to the end of the connection, however it ends, and keeps nothing.
    pub async fn drain(&mut self) {
        while let Ok(Some(_)) = self.next().await {}
    }
}

/// The direction in which the service is told something.
pub struct Writer {
    writer: WriteHalf<TlsStream<TcpStream>>,
    next_id: u32,
}

impl Writer {
    /// Sends bytes that need be no frame.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Sends frames, all in one go.
    pub async fn send(&mut self, frames: impl IntoIterator<Item = Frame>) -> io::Result<()> {
        let mut bytes = Vec::new();
        frames.into_iter().for_each(|frame| frame.encode(&mut bytes));
        self.write(&bytes).await
    }

    /// A stream that was not used yet.
    pub fn stream(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        id
    }

    /// Sends a call, whole.
    pub async fn call(&mut self, call: &Call<'_>) -> io::Result<u32> {
        let stream = self.stream();
        self.send([call.head(stream), call.message(stream).last()]).await?;
        Ok(stream)
    }

    /// Sends a call whose message others may follow.
    pub async fn begin(&mut self, call: &Call<'_>) -> io::Result<u32> {
        let stream = self.stream();
        self.send([call.head(stream), call.message(stream)]).await?;
        Ok(stream)
    }
}

/// A call of an RPC with one message.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The path of the RPC.
    pub path: &'a str,
    /// The timeout, as `grpc-timeout` states it.
    pub timeout: &'a str,
    /// The message, encoded.
    pub message: &'a [u8],
}

impl Call<'_> {
    /// The header block of its head.
    pub fn block(&self) -> Vec<u8> {
        // `POST` and `https` stand in the static table of HPACK, at 3 and 7.
        let mut block = vec![0x83, 0x87];
        for (name, value) in [
            (":path", self.path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", self.timeout),
        ] {
            frame::encode_header(&mut block, name, value);
        }
        block
    }

    /// The frame that opens its stream.
    pub fn head(&self, stream: u32) -> Frame {
        Frame::new(HEADERS, END_HEADERS, stream, self.block())
    }

    /// The frame of its message.
    pub fn message(&self, stream: u32) -> Frame {
        let length = u32::try_from(self.message.len()).unwrap().to_be_bytes();
        Frame::new(DATA, 0, stream, [&[0], length.as_slice(), self.message].concat())
    }
}
