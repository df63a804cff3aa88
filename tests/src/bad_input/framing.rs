//! Bodies that are not what gRPC makes of messages: a flag, a length of four bytes, and
//! the message.

use std::ops::Range;

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

use super::wire::Request;

/// The most bytes that a message may have.
const LIMIT: u32 = 4 << 20;

/// Where the length is.
const LENGTH: Range<usize> = 1..5;

type Way = fn(&mut Request, &mut StdRng);

const WAYS: [(&str, Way); 14] = [
    ("no message", |request, _| request.body.clear()),
    ("an empty message", |request, _| request.body = vec![0; 5]),
    ("a message more", |request, _| request.body.extend_from_within(..)),
    ("half a header", |request, random| request.body.truncate(random.random_range(1..5))),
    ("the end left away", |request, random| {
        request.body.truncate(random.random_range(5..request.body.len().max(6)));
    }),
    ("something at the end", |request, _| request.body.extend([0, 0, 0])),
    ("a flag that does not exist", |request, random| {
        request.body[0] = random.random_range(2..=255);
    }),
    ("compressed, and nobody knows how", |request, _| request.body[0] = 1),
    ("compressed in an unknown way", |request, _| {
        request.body[0] = 1;
        request.set("grpc-encoding", "br");
    }),
    ("an unknown compression, and none", |request, _| request.set("grpc-encoding", "br")),
    ("not as compressed as it says", |request, random| {
        request.body[0] = 1;
        request.set("grpc-encoding", *["gzip", "zstd", "identity"].choose(random).unwrap());
    }),
    ("a length that is too large", |request, random| {
        let length = *[1 << 10, LIMIT, u32::MAX].choose(random).unwrap();
        request.body[LENGTH].copy_from_slice(&length.to_be_bytes());
    }),
    ("a length that is too small", |request, _| {
        request.body[LENGTH].copy_from_slice(&1_u32.to_be_bytes());
    }),
    ("a message beyond the limit", |request, _| {
        request.body = frame(&vec![0; LIMIT as usize + 1]);
    }),
];

/// Spoils the body, and says how.
pub(super) fn spoil(request: &mut Request, random: &mut StdRng) -> &'static str {
    let (name, way) = WAYS.choose(random).unwrap();
    if request.body.len() >= LENGTH.end {
        way(request, random);
    }
    name
}

/// A message as gRPC frames it.
pub(super) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], length.to_be_bytes().as_slice(), message].concat()
}
