//! The frames of HTTP/2 (RFC 9113), and as much of HPACK (RFC 7541) as it takes to write
//! a header.

/// What a client begins its connection with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes before the payload of a frame.
pub const HEAD_LENGTH: usize = 9;

/// The type of a frame of messages.
pub const DATA: u8 = 0x0;
/// The type of a frame that begins a header block, or all of it.
pub const HEADERS: u8 = 0x1;
/// The type of a frame that ends a stream at once.
pub const RST_STREAM: u8 = 0x3;
/// The type of a frame of settings of a connection.
pub const SETTINGS: u8 = 0x4;
/// The type of a frame that asks for an answer.
pub const PING: u8 = 0x6;
/// The type of a frame after which no stream is begun.
pub const GOAWAY: u8 = 0x7;
/// The type of a frame that lets the other send more.
pub const WINDOW_UPDATE: u8 = 0x8;
/// The type of a frame that goes on with a header block.
pub const CONTINUATION: u8 = 0x9;

/// The flag of settings and pings that answer others.
pub const ACK: u8 = 0x1;
/// The flag of what is the last on its stream.
pub const END_STREAM: u8 = 0x1;
/// The flag of what is the last of a header block.
pub const END_HEADERS: u8 = 0x4;

/// The setting that says how many bytes may be sent on a stream before it is told more.
pub const INITIAL_WINDOW_SIZE: u16 = 0x4;

/// The error code of who wants no more of a stream.
const CANCEL: u32 = 0x8;

/// A frame as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 for the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of any type.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// Settings of the connection.
    pub fn settings(settings: &[(u16, u32)]) -> Self {
        let one = |&(setting, value): &(u16, u32)| {
            [setting.to_be_bytes().as_slice(), &value.to_be_bytes()].concat()
        };
        Self::new(SETTINGS, 0, 0, settings.iter().flat_map(one).collect::<Vec<_>>())
    }

    /// What ends a stream whose answer nobody wants any more.
    pub fn cancel(stream: u32) -> Self {
        Self::new(RST_STREAM, 0, stream, CANCEL.to_be_bytes())
    }

    /// The frame, as the last that is sent on its stream.
    #[must_use]
    pub fn last(self) -> Self {
        Self { flags: self.flags | END_STREAM, ..self }
    }

    /// What lets so many bytes more be sent, on a stream or, for 0, on all.
    pub fn window_update(stream: u32, increment: u32) -> Self {
        Self::new(WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
    }

    /// A question whether the other is there.
    pub fn ping() -> Self {
        Self::new(PING, 0, 0, [0; 8])
    }

    /// The answer to settings or a ping.
    #[must_use]
    pub fn acknowledgement(self) -> Self {
        let payload = if self.kind == PING { self.payload } else { Vec::new() };
        Self { flags: ACK, payload, ..self }
    }

    /// Adds the frame to what is to be sent.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let length = u32::try_from(self.payload.len()).unwrap();
        bytes.extend(&length.to_be_bytes()[1..]);
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
    }

    /// A frame without its payload, and how long that is.
    pub fn parse(head: [u8; HEAD_LENGTH]) -> (Self, usize) {
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        (Self::new(kind, flags, u32::from_be_bytes(stream), []), length as usize)
    }
}

/// Adds a header to a header block: a literal that the other need not remember.
pub fn encode_header(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        encode_length(block, 7, text.len());
        block.extend(text.as_bytes());
    }
}

/// Adds an integer to a header block. Its first byte has so many bits of it; those above
/// are 0.
pub fn encode_length(block: &mut Vec<u8>, bits: u8, length: usize) {
    let most = (1 << bits) - 1;
    let Some(mut rest) = length.checked_sub(most) else {
        return block.push(u8::try_from(length).unwrap());
    };
    block.push(u8::try_from(most).unwrap());
    while rest >= 0x80 {
        block.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    block.push(u8::try_from(rest).unwrap());
}
