//! Answers in gzip or zstd, for callers that accept it and messages that are worth it.
//!
//! tonic, told to compress, compresses every message, and most answers are smaller than
//! what that costs. Callers in Python and Java accept gzip without having asked for it.

use std::io::Read;

use flate2::{Compression, read::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::bytes::{BufMut, Bytes, BytesMut};

/// Makes a generated server take requests in gzip and zstd, too. Answers are not its
/// concern: whoever accepts them gets them so where it is worth it.
#[macro_export]
macro_rules! accept_compressed {
    ($server:expr) => {
        $server
            .accept_compressed(::tonic::codec::CompressionEncoding::Gzip)
            .accept_compressed(::tonic::codec::CompressionEncoding::Zstd)
    };
}

/// Messages of fewer bytes are sent as they are: they fit in one packet, compressed or not.
const WORTH_IT: usize = 1024;
/// A flag that tells whether the message is compressed, and its length.
const PREFIX: usize = 5;

const ACCEPTED: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const CHOSEN: HeaderName = HeaderName::from_static("grpc-encoding");

/// How messages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    Zstd,
}

impl Encoding {
    /// The first that the caller names of those that are known here.
    pub(super) fn accepted(request: &HeaderMap) -> Option<Self> {
        let values = request.get_all(ACCEPTED).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).find_map(|name| match name.trim() {
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        })
    }

    /// Says in the head of an answer how its messages are compressed, if they are.
    pub(super) fn announce(self, response: &mut HeaderMap) {
        let name = match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        };
        response.insert(CHOSEN, HeaderValue::from_static(name));
    }

    /// Compresses the messages in a frame that become smaller by it. tonic puts whole
    /// messages in a frame, one or many.
    pub(super) fn compress(self, frame: Bytes) -> Bytes {
        if frame.len() < PREFIX + WORTH_IT {
            return frame;
        }
        let mut rest = &frame[..];
        let mut written = BytesMut::with_capacity(frame.len());
        while let Some((message, others)) = split(rest) {
            match self.shrink(&message[PREFIX..]) {
                Some((shrunk, length)) => {
                    written.put_u8(1);
                    written.put_u32(length);
                    written.put_slice(&shrunk);
                }
                None => written.put_slice(message),
            }
            rest = others;
        }
        written.put_slice(rest);
        written.freeze()
    }

    /// The message in fewer bytes, and how many, if that can be.
    fn shrink(self, message: &[u8]) -> Option<(Vec<u8>, u32)> {
        if message.len() < WORTH_IT {
            return None;
        }
        let shrunk = match self {
            Self::Gzip => {
                let mut shrunk = Vec::with_capacity(message.len() / 2);
                GzEncoder::new(message, Compression::fast()).read_to_end(&mut shrunk).ok()?;
                shrunk
            }
            Self::Zstd => zstd::bulk::compress(message, zstd::DEFAULT_COMPRESSION_LEVEL).ok()?,
        };
        let length = u32::try_from(shrunk.len()).ok()?;
        (shrunk.len() < message.len()).then_some((shrunk, length))
    }
}

/// The first message with its prefix, and what is after it.
fn split(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, _) = frame.split_first_chunk::<PREFIX>()?;
    let [_, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    frame.split_at_checked(PREFIX.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;
    use proptest::prelude::*;

    use super::*;

    fn framed<'a>(messages: impl IntoIterator<Item = &'a Vec<u8>>) -> Bytes {
        let mut frame = BytesMut::new();
        for message in messages {
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len()).unwrap());
            frame.put_slice(message);
        }
        frame.freeze()
    }

    /// Whether each message was compressed, and what it says.
    fn read(encoding: Encoding, frame: &[u8]) -> Vec<(bool, Vec<u8>)> {
        let mut rest = frame;
        let mut messages = Vec::new();
        while let Some((message, others)) = split(rest) {
            let (is_compressed, message) = (message[0] == 1, &message[PREFIX..]);
            let message = match encoding {
                _ if !is_compressed => message.to_vec(),
                Encoding::Gzip => {
                    let mut plain = Vec::new();
                    GzDecoder::new(message).read_to_end(&mut plain).unwrap();
                    plain
                }
                Encoding::Zstd => zstd::bulk::decompress(message, 1 << 20).unwrap(),
            };
            messages.push((is_compressed, message));
            rest = others;
        }
        assert_eq!(rest, b"");
        messages
    }

    #[test]
    fn the_first_encoding_that_both_know_is_chosen() {
        let accepted = |values: &[&'static str]| {
            let value = |value| (ACCEPTED, HeaderValue::from_static(value));
            Encoding::accepted(&values.iter().copied().map(value).collect())
        };
        assert_eq!(accepted(&[]), None);
        assert_eq!(accepted(&["identity, deflate"]), None);
        assert_eq!(accepted(&["identity,deflate, gzip"]), Some(Encoding::Gzip));
        assert_eq!(accepted(&["br", "zstd,gzip"]), Some(Encoding::Zstd));
    }

    #[test]
    fn a_message_is_compressed_if_that_makes_it_smaller_and_it_was_worth_the_effort() {
        let repetitive = vec![b'x'; WORTH_IT];
        let small = vec![b'x'; WORTH_IT - 1];
        let random: Vec<_> = (0..4 * WORTH_IT as u64)
            .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
            .collect();
        let incompressible = zstd::bulk::compress(&random, 19).unwrap();
        let messages = [repetitive, small, incompressible];
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let read = read(encoding, &encoding.compress(framed(&messages)));
            let compressed: Vec<_> = read.iter().map(|(is_compressed, _)| *is_compressed).collect();
            assert_eq!(compressed, [true, false, false]);
        }
    }

    proptest! {
        #[test]
        fn every_message_arrives_as_it_was(
            messages in prop::collection::vec(prop::collection::vec(0..4_u8, 0..4096), 0..4),
        ) {
            for encoding in [Encoding::Gzip, Encoding::Zstd] {
                let read = read(encoding, &encoding.compress(framed(&messages)));
                let read: Vec<_> = read.into_iter().map(|(_, message)| message).collect();
                prop_assert_eq!(&read, &messages);
            }
        }
    }
}
