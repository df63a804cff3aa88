//! Connections by the thousand that say nothing, or stop half-way.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use chandlery::{service::Service, suite::Credential};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{Bench, Case, Scale, Verdict, bystander::Bystander};
use crate::{peer::Line, shop::Shop, usage::Usage};

const MUST_HOLD: &str = "gone within 10 s; CPU below 10 % of a core; new callers served";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "silent connections",
        must_hold: MUST_HOLD,
        run: |bench| {
            let open = |line: Line| async move { hold(line.connect().await) }.boxed();
            call_amid(bench, 2_000, open).boxed()
        },
    },
    Case {
        name: "connections silent after the TLS hello",
        must_hold: MUST_HOLD,
        run: |bench| {
            let open = |line: Line| async move { hold(line.hello().await) }.boxed();
            call_amid(bench, 2_000, open).boxed()
        },
    },
    Case {
        name: "connections silent after the TLS handshake",
        must_hold: MUST_HOLD,
        run: |bench| {
            let open = |line: Line| async move { hold(line.shake_hands().await) }.boxed();
            call_amid(bench, 500, open).boxed()
        },
    },
    Case {
        name: "more connections than descriptors",
        must_hold: MUST_HOLD,
        run: |bench| call_short_of_descriptors(bench).boxed(),
    },
    Case {
        name: "silent connections on the port of probes",
        must_hold: "gone within 10 s; CPU below 10 % of a core; probes answered",
        run: |bench| probe_amid_silence(bench).boxed(),
    },
];

/// How long a connection may last that is good for nothing.
const LIFETIME_LIMIT: Duration = Duration::from_secs(10);
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(40);
/// How many connections are opened at a time.
const CONCURRENCY: usize = 64;
/// How often somebody calls meanwhile. That costs CPU, too.
const PAUSE: Duration = Duration::from_millis(500);

/// A connection that was opened.
type Connection = Box<dyn AsyncRead + Send + Unpin>;
type Opening = BoxFuture<'static, io::Result<Connection>>;

fn hold(opened: io::Result<impl AsyncRead + Send + Unpin + 'static>) -> io::Result<Connection> {
    Ok(Box::new(opened?))
}

async fn call_amid(bench: Bench, count: usize, open: fn(Line) -> Opening) -> Verdict {
    let shop = Shop::open(&bench.program).await;
    let line = Line::new(&shop.suite, Service::Catalog, Credential::OPERATOR);
    outlast(&bench, shop, count, move || open(line.clone()), Bystander::call_catalog).boxed().await
}

async fn call_short_of_descriptors(bench: Bench) -> Verdict {
    const DESCRIPTOR_LIMIT: usize = 128;
    let folder = tempfile::tempdir().unwrap();
    let program = limited(&bench.program, DESCRIPTOR_LIMIT, folder.path());
    let shop = Shop::open(&program).await;
    let address = shop.suite.address(Service::Catalog);
    let count = 4 * DESCRIPTOR_LIMIT;
    outlast(&bench, shop, count, connect_to(address), Bystander::call_catalog).boxed().await
}

async fn probe_amid_silence(bench: Bench) -> Verdict {
    let shop = Shop::open(&bench.program).await;
    let address = shop.suite.health_address(Service::Catalog);
    outlast(&bench, shop, 500, connect_to(address), Bystander::probe_catalog).boxed().await
}

fn connect_to(address: SocketAddr) -> impl Fn() -> Opening {
    move || async move { hold(TcpStream::connect(address).await) }.boxed()
}

/// The program with at most so many descriptors for each of its processes.
fn limited(program: &str, descriptors: usize, folder: &Path) -> String {
    let script = folder.join("limited");
    let lines = format!("#!/bin/sh\nulimit -n {descriptors}\nexec '{program}' \"$@\"\n");
    fs::write(&script, lines).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script.to_str().unwrap().to_owned()
}

/// Opens connections until there are so many, waits until the service has closed them all,
/// and finds what that took.
async fn outlast(
    bench: &Bench,
    shop: Shop,
    count: usize,
    open: impl Fn() -> Opening,
    bystander: fn(&Shop, Scale, Duration) -> Bystander,
) -> Verdict {
    allow_descriptors();
    let process = shop.suite.process_id(Service::Catalog).unwrap();
    let mut crowd = JoinSet::new();
    let mut refused = 0;
    let mut opening = stream::iter(0..count).map(|_| open()).buffer_unordered(CONCURRENCY);
    while let Some(opened) = opening.next().await {
        match opened {
            Ok(connection) => drop(crowd.spawn(lifetime(connection))),
            // One that was closed for another while it was opened.
            Err(_) => refused += 1,
        }
    }
    // Who comes now finds them all there.
    let bystander = bystander(&shop, bench.scale, PAUSE);
    let (before, begun) = (Usage::of(process), Instant::now());
    let mut longest = Duration::ZERO;
    while let Some(lifetime) = crowd.join_next().await {
        longest = longest.max(lifetime.unwrap());
    }
    let (after, elapsed) = (Usage::of(process), begun.elapsed());
    let served = bystander.end().await;

    let cpu = before.zip(after).map(|(before, after)| {
        100.0 * after.cpu_time.saturating_sub(before.cpu_time).div_duration_f64(elapsed)
    });
    let idle = cpu.map_or("CPU not told here".to_owned(), |percent| format!("CPU {percent:.1} %"));
    let seconds = longest.as_secs_f64();
    let found = format!(
        "{count} connections ({refused} refused), gone after {seconds:.1} s; {idle}; {served}"
    );
    shop.close().await;
    // What is late on a machine that does other things is not left open.
    let limit = LIFETIME_LIMIT + bench.scale.choose(Duration::from_secs(5), Duration::ZERO);
    let is_idle = cpu.is_none_or(|percent| percent < 10.0);
    if longest <= limit && is_idle && served.is_well() { Ok(found) } else { Err(found) }
}

/// How long the service leaves a connection open.
async fn lifetime(mut connection: Connection) -> Duration {
    let begun = Instant::now();
    let mut buffer = [0; 1024];
    let end = async { while connection.read(&mut buffer).await.is_ok_and(|length| length > 0) {} };
    let _ = timeout(PATIENCE, end).await;
    begun.elapsed()
}

/// Lets this process have as many descriptors as the system lets it have.
fn allow_descriptors() {
    /// More than `maximum` says are not to be had on macOS.
    const LIMIT: u64 = 10_240;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.map_or(LIMIT, |maximum| maximum.min(LIMIT)));
    let _ = setrlimit(Resource::Nofile, limit);
}
