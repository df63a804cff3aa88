//! Peers with a valid certificate that send more than anybody has use for, or take less
//! than they have asked for.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chandlery::{service::Service, suite::Credential};
use futures::{FutureExt, future::BoxFuture};
use prost::Message;
use proto::catalog::v1::{ListProductsRequest, WatchProductsRequest};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use uuid::Uuid;

use super::{
    Bench, Case, Verdict,
    bystander::Bystander,
    catalog::{EXPORT, IMPORT, LIST, WATCH_HEALTH, WATCH_PRODUCTS, fill},
};
use crate::{
    peer::{
        Call, Line, Peer, Writer,
        frame::{
            CONTINUATION, DATA, END_HEADERS, Frame, HEADERS, INITIAL_WINDOW_SIZE, encode_header,
            encode_length,
        },
    },
    shop::Shop,
    usage::{self, Usage},
};

const MUST_HOLD: &str = "callers served meanwhile; memory +< 64 MiB; no panic";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "flood of streams that are reset",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, &[], |peer, sent| reset(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "flood of SETTINGS",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, &[], |peer, sent| settings(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "flood of PING",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, &[], |peer, sent| ping(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "flood of CONTINUATION",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, &[], |peer, sent| continuation(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "flood of header lists",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, &[], |peer, sent| headers(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "flood of tiny DATA",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, &[], |peer, sent| data(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "pages that nobody takes",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, CLOSED, |peer, sent| hoard(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "streams that nobody reads",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, CLOSED, |peer, sent| stall(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "windows that open byte by byte",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, CLOSED, |peer, sent| sip(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "windows that overflow",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, FEW, CLOSED, |peer, sent| overflow(peer, sent).boxed()).boxed(),
    },
    Case {
        name: "as many streams as can be had",
        must_hold: MUST_HOLD,
        run: |bench| amid(bench, MANY, &[], |peer, sent| watch(peer, sent).boxed()).boxed(),
    },
];

/// How much the memory of the service may grow.
const GROWTH_LIMIT: u64 = 64 << 20;
/// How many connections flood at once.
const FEW: usize = 4;
/// How many connections there are where they are what floods.
const MANY: usize = 20;
/// How many streams of a connection are asked for, where they are what floods.
const STREAMS: usize = 1_024;
/// How many large answers are asked for on a connection.
const ANSWERS: usize = 128;
/// How many frames are sent in one go.
const BATCH: usize = 1_000;
/// The most bytes of a frame.
const FRAME_LIMIT: usize = 16 << 10;
/// How often somebody else calls meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// The settings of who reads nothing yet.
const CLOSED: &[(u16, u32)] = &[(INITIAL_WINDOW_SIZE, 0)];

/// What is done over a connection, until the service closes it.
type Flood = fn(Peer, Arc<Sent>) -> BoxFuture<'static, io::Result<()>>;

/// What the peers have sent.
#[derive(Default)]
struct Sent {
    connections: AtomicU64,
    frames: AtomicU64,
}

impl Sent {
    fn add(&self, frames: usize) {
        self.frames.fetch_add(frames as u64, Ordering::Relaxed);
    }
}

/// Floods the catalog over so many connections at once, and finds what others notice of it
/// and what it costs the service.
async fn amid(
    bench: Bench,
    connections: usize,
    settings: &'static [(u16, u32)],
    flood: Flood,
) -> Verdict {
    let mut shop = Shop::open(&bench.program).await;
    let process = shop.suite.process_id(Service::Catalog).unwrap();
    fill(&shop, 1_000, 4_000).await;
    usage::forget_peak(process);
    let before = Usage::of(process);

    let bystander = Bystander::call_catalog(&shop, bench.scale, PAUSE);
    let line = Line::new(&shop.suite, Service::Catalog, Credential::OPERATOR);
    let sent = Arc::new(Sent::default());
    let until =
        Instant::now() + bench.scale.choose(Duration::from_secs(3), Duration::from_secs(10));
    let mut peers = JoinSet::new();
    for _ in 0..connections {
        let (line, sent) = (line.clone(), Arc::clone(&sent));
        peers.spawn(async move {
            while Instant::now() < until {
                let flooding = async {
                    let peer = line.open(settings).await?;
                    sent.connections.fetch_add(1, Ordering::Relaxed);
                    flood(peer, Arc::clone(&sent)).await
                };
                // To close the connection is the right of the service. There are others.
                if matches!(timeout_at(until, flooding).await, Ok(Err(_))) {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    peers.join_all().await;
    let served = bystander.end().await;
    let after = Usage::of(process);

    let has_ended = shop.suite.ended(Service::Catalog).unwrap().is_some();
    let log = shop.suite.directory().join(format!("{}.log", Service::Catalog));
    let has_panicked = String::from_utf8_lossy(&fs::read(log).unwrap()).contains("panicked");
    let is_well = !has_ended && !has_panicked && shop.suite.is_serving(Service::Catalog).await;

    let Sent { connections, frames } = &*sent;
    let (connections, frames) =
        (connections.load(Ordering::Relaxed), frames.load(Ordering::Relaxed));
    let growth = before
        .zip(after)
        .map(|(before, after)| after.peak_bytes.saturating_sub(before.resident_bytes));
    let memory = growth.map_or("memory not told here".to_owned(), |growth| {
        format!("memory +{} MiB", growth >> 20)
    });
    let found = format!("{frames} frames over {connections} connections; {served}; {memory}");
    if !is_well {
        let log = shop.suite.log_tail(Service::Catalog);
        return Err(format!("{found}; ended: {has_ended}, panicked: {has_panicked}\n{log}"));
    }
    shop.close().await;
    let is_small = growth.is_none_or(|growth| growth < GROWTH_LIMIT);
    if served.is_well() && is_small { Ok(found) } else { Err(found) }
}

/// Sends for ever what `batch` makes up, and reads and forgets what comes back.
async fn press(
    Peer { mut reader, mut writer }: Peer,
    sent: &Sent,
    mut batch: impl FnMut(&mut Writer) -> Vec<Frame>,
) -> io::Result<()> {
    let pressing = async {
        loop {
            let frames = batch(&mut writer);
            let count = frames.len();
            writer.send(frames).await?;
            sent.add(count);
        }
    };
    tokio::select! {
        ended = pressing => ended,
        () = reader.drain() => Ok(()),
    }
}

async fn reset(peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    /// Few enough for the service to begin the calls before it sees the end of them.
    const CALLS: usize = 16;
    press(peer, &sent, |writer| {
        let calls = (0..CALLS).map(|_| writer.stream());
        let frames = |id| [LIST.head(id), LIST.message(id).last(), Frame::cancel(id)];
        calls.flat_map(frames).collect()
    })
    .await
}

async fn settings(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    // Nobody reads the answers.
    loop {
        peer.writer.send(vec![Frame::settings(&[(INITIAL_WINDOW_SIZE, 1)]); BATCH]).await?;
        sent.add(BATCH);
    }
}

async fn ping(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    // Nobody reads the answers.
    loop {
        peer.writer.send(vec![Frame::ping(); BATCH]).await?;
        sent.add(BATCH);
    }
}

async fn continuation(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    let stream = peer.writer.stream();
    peer.writer.send([Frame::new(HEADERS, 0, stream, LIST.block())]).await?;
    let mut many = Vec::with_capacity(FRAME_LIMIT);
    while many.len() < FRAME_LIMIT - 4 {
        encode_header(&mut many, "a", "");
    }
    press(peer, &sent, |_| vec![Frame::new(CONTINUATION, 0, stream, many.clone())]).await
}

async fn headers(peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    let mut many_small = LIST.block();
    while many_small.len() < FRAME_LIMIT - 4 {
        encode_header(&mut many_small, "a", "");
    }
    // A header of 4 KB that the other is to remember, and then by its place in the table,
    // which is a byte, is told of again and again: 50 MB from a frame of 16 KiB.
    let mut one_large = LIST.block();
    one_large.extend([0x40, 1, b'a']);
    encode_length(&mut one_large, 7, 4_000);
    one_large.resize(one_large.len() + 4_000, b'a');
    one_large.resize(FRAME_LIMIT, 0xbe);
    press(peer, &sent, |writer| {
        let head = |block: &Vec<u8>| Frame::new(HEADERS, END_HEADERS, 0, block.clone()).last();
        let heads = [head(&many_small), head(&one_large)];
        heads.map(|head| Frame { stream: writer.stream(), ..head }).to_vec()
    })
    .await
}

async fn data(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    let stream = peer.writer.stream();
    // The message is of a megabyte, of which each byte comes on its own.
    let length = (1_u32 << 20).to_be_bytes();
    let begin = Frame::new(DATA, 0, stream, [&[0], length.as_slice()].concat());
    peer.writer.send([IMPORT.head(stream), begin]).await?;
    press(peer, &sent, |_| {
        let pair = [Frame::new(DATA, 0, stream, [0]), Frame::new(DATA, 0, stream, [])];
        pair.into_iter().cycle().take(BATCH).collect()
    })
    .await
}

/// Asks for the largest page so many times.
async fn ask(peer: &mut Peer, count: usize, sent: &Sent) -> io::Result<Vec<u32>> {
    let page = ListProductsRequest { page_size: 1_000, ..Default::default() }.encode_to_vec();
    call(peer, &[Call { message: &page, ..LIST }], count, sent).await
}

/// Makes so many calls in turn, each when the one before was answered.
async fn call(
    peer: &mut Peer,
    calls: &[Call<'_>],
    count: usize,
    sent: &Sent,
) -> io::Result<Vec<u32>> {
    let mut streams = Vec::new();
    for call in calls.iter().cycle().take(count) {
        let stream = peer.writer.call(call).await?;
        answered(peer, stream).await?;
        sent.add(2);
        streams.push(stream);
    }
    Ok(streams)
}

/// Waits until a call is answered, or refused.
async fn answered(peer: &mut Peer, stream: u32) -> io::Result<()> {
    peer.next_on(stream).await?.map(drop).ok_or(io::ErrorKind::UnexpectedEof.into())
}

async fn hoard(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    ask(&mut peer, ANSWERS, &sent).await?;
    peer.reader.drain().await;
    Ok(())
}

async fn stall(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    call(&mut peer, &[EXPORT, WATCH_PRODUCTS], ANSWERS, &sent).await?;
    peer.reader.drain().await;
    Ok(())
}

async fn sip(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    /// Few, since it is the bytes that are many.
    const PAGES: usize = 4;
    let streams = ask(&mut peer, PAGES, &sent).await?;
    press(peer, &sent, |_| streams.iter().map(|&stream| Frame::window_update(stream, 1)).collect())
        .await
}

async fn overflow(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    const MOST: u32 = (1 << 31) - 1;
    let stream = peer.writer.call(&LIST).await?;
    let frames = [stream, stream, 0, 0].map(|stream| Frame::window_update(stream, MOST));
    peer.writer.send(frames).await?;
    sent.add(6);
    peer.reader.drain().await;
    Ok(())
}

async fn watch(mut peer: Peer, sent: Arc<Sent>) -> io::Result<()> {
    let nothing = WatchProductsRequest { ids: vec![Uuid::nil().to_string()], ..Default::default() };
    let nothing = nothing.encode_to_vec();
    let watch_nothing = Call { message: &nothing, ..WATCH_PRODUCTS };
    call(&mut peer, &[watch_nothing, WATCH_HEALTH], STREAMS, &sent).await?;
    peer.reader.drain().await;
    Ok(())
}
