//! Heads that are not what gRPC makes of a call, and metadata that says nothing.

use chandlery::service::Service;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

use super::{known::Known, wire::Request};

/// The first is longer than anybody can wait for.
const TIMEOUTS: [&[u8]; 12] = [
    b"99999999H",
    b"",
    b"1",
    b"S",
    b"-1S",
    b"+1S",
    b"1.5S",
    b"1s",
    b"999999999S",
    b"0n",
    b"1n",
    b"\xff",
];

const CONTENT_TYPES: [&str; 7] = [
    "",
    "application/json",
    "text/plain; charset=utf-8",
    "application/grpc-web",
    "application/grpcx",
    "application/grpc+json",
    "application/grpc+proto",
];

const AUTHORIZATIONS: [&[u8]; 9] = [
    b"",
    b"Bearer",
    b"Bearer ",
    b"bearer x",
    b"Basic Z3JhY2U6aG9wcGVy",
    b"Bearer a.b.c",
    b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJtZSJ9.",
    b"Bearer eyJhbGciOiJFZERTQSJ9.bnVsbA.AAAA",
    b"Bearer \xff\xfe",
];

type Way = fn(&mut Request, &Known, &mut StdRng);

const WAYS: [(&str, Way); 15] = [
    ("grpc-timeout", |request, _, random| {
        let must_end = request.headers.contains_key("grpc-timeout");
        let timeouts = if must_end { &TIMEOUTS[1..] } else { &TIMEOUTS };
        request.set("grpc-timeout", *timeouts.choose(random).unwrap());
    }),
    ("grpc-timeout twice", |request, _, _| {
        request.add("grpc-timeout", "5S");
        request.add("grpc-timeout", "five");
    }),
    ("content-type", |request, _, random| {
        request.set("content-type", *CONTENT_TYPES.choose(random).unwrap());
    }),
    ("no content-type", |request, _, _| {
        request.headers.remove("content-type");
    }),
    ("no te", |request, _, _| {
        request.headers.remove("te");
    }),
    ("the HTTP method", |request, _, random| {
        let methods = ["GET", "PUT", "OPTIONS", "DELETE", "BREW"];
        request.method = methods.choose(random).unwrap().parse().unwrap();
    }),
    ("the path", |request, _, random| {
        let RpcPath { service, method } = RpcPath::of(&request.path);
        request.path = match random.random_range(0..7) {
            0 => format!("{service}/{}", method.to_lowercase()),
            1 => format!("{service}X/{method}"),
            2 => format!("{service}/{method}/"),
            3 => format!("/{service}/{method}"),
            4 => "/".to_owned(),
            5 => format!("{service}/{}", "a".repeat(7_900)),
            _ => format!("{service}/%2e%2e/{method}?x=1"),
        };
    }),
    ("the service", |request, _, random| {
        request.line.0 = *Service::ALL.choose(random).unwrap();
    }),
    ("authorization", |request, _, random| {
        request.set("authorization", *AUTHORIZATIONS.choose(random).unwrap());
    }),
    ("a token that was tampered with", |request, known, random| {
        let token = known.session(random).map_or("a.b.c", |session| &session.access_token);
        let mut token = token.as_bytes().to_vec();
        let place = random.random_range(..token.len());
        token[place] = if token[place] == b'A' { b'B' } else { b'A' };
        request.set("authorization", [b"Bearer ", token.as_slice()].concat());
    }),
    ("a token that is too long", |request, _, random| {
        let length = *[5_000, 9_000].choose(random).unwrap();
        request.set("authorization", format!("Bearer {}", "a".repeat(length)));
    }),
    ("binary metadata that is not base64", |request, _, random| {
        let names = ["cart-bin", "grpc-trace-bin", "grpc-status-details-bin"];
        let name = names.choose(random).unwrap();
        request.set(name, *["%%%", "A", "====", "\u{e9}"].choose(random).unwrap());
    }),
    ("twenty kilobytes of metadata", |request, _, random| {
        let value = "a".repeat(*[100, 1_000, 20_000].choose(random).unwrap());
        for number in 0..20_000 / value.len() {
            request.add(&format!("x-{number}"), value.as_str());
        }
    }),
    ("the trace", |request, _, random| {
        let values = ["", "00-0-0-0", "ff-ffffffffffffffffffffffffffffffff-ffffffffffffffff-ff"];
        request.set("traceparent", *values.choose(random).unwrap());
        request.set("tracestate", ",,=,");
    }),
    ("what only an answer has", |request, _, _| {
        request.set("grpc-status", "13");
        request.set("grpc-message", "%zz");
        request.set("grpc-accept-encoding", ",,;q=x");
    }),
];

/// Spoils the head, and says what of it.
pub(super) fn spoil(request: &mut Request, known: &Known, random: &mut StdRng) -> &'static str {
    let (name, way) = WAYS.choose(random).unwrap();
    way(request, known, random);
    name
}

struct RpcPath<'a> {
    service: &'a str,
    method: &'a str,
}

impl<'a> RpcPath<'a> {
    fn of(path: &'a str) -> Self {
        let (service, method) = path.rsplit_once('/').unwrap();
        Self { service, method }
    }
}
