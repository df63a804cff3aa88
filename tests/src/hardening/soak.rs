//! All of it at once and for long: purchases, reads and streams, while processes are
//! killed, drained and stopped, certificates are rotated, and peers are slow. What must
//! not grow is measured, and the books are checked at the end.

use std::{
    collections::BTreeMap,
    fmt, future,
    ops::Range,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use chandlery::{
    check::Sent,
    clients::Clients,
    load::{self, Progress},
    service::Service,
    suite::Credential,
};
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use proto::catalog::v1::{ExportProductsRequest, Product, WatchProductsRequest};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{interval, sleep, timeout},
};
use tonic::Streaming;

use super::{
    Bench, Verdict,
    catalogs::Catalogs,
    rotation::Rotation,
    traffic::{Ended, Traffic},
};
use crate::{peer::Line, shop::Shop, usage::Usage};

/// Catalogs that are killed until the end, beside that of the shop.
const REPLICAS: usize = 3;

/// Calls a second to the replicas.
const READS: u32 = 100;

/// How many purchases are sent together, and how often.
const BATCH: usize = 60;
const BATCH_INTERVAL: Duration = Duration::from_secs(3);

/// How many slow peers, and streams, there are at a service at once, and for how long
/// before others come.
const SLOW_PEERS: usize = 8;
const SLOWNESS: Duration = Duration::from_secs(15);

/// How long a process is stopped: less than the deadline of a read.
const STOP: Duration = Duration::from_secs(1);

/// The longest pause between two disturbances, in milliseconds.
const PAUSE_LIMIT_MS: u64 = 4_000;

/// How often it is told how things stand.
const TELL_INTERVAL: Duration = Duration::from_secs(15);

/// What a process may take more at the end than after the warm-up, in bytes and in files.
/// Allocators and caches come to rest late; what is lost with every call, connection or
/// rotation is far more than that in an hour.
const BYTES_LIMIT: u64 = 24 << 20;
const DESCRIPTORS_LIMIT: u64 = 48;

/// Disturbs a suite for so long, and tells how it goes.
pub fn soak(bench: Bench, duration: Duration) -> BoxFuture<'static, Report> {
    run(bench, duration).boxed()
}

async fn run(bench: Bench, duration: Duration) -> Report {
    let mut catalogs = Catalogs::open(&bench, REPLICAS).await;
    let channel = catalogs.channel();
    let reads = Traffic::begin(READS, catalogs.calls(channel));
    let purchases = Purchases::begin(&catalogs.shop, bench.seed).await;
    let nuisance = nuisance(&catalogs.shop);

    let mut soak = Soak {
        rotation: Rotation::of(&catalogs),
        catalogs,
        random: StdRng::seed_from_u64(bench.seed),
        disturbances: Disturbances::default(),
        samples: BTreeMap::new(),
        begun: Instant::now(),
    };
    let warm_up = duration / 4;
    let mut told = Instant::now();
    while soak.begun.elapsed() < duration {
        soak.disturb(soak.begun.elapsed() < warm_up).await;
        soak.sample();
        if told.elapsed() >= TELL_INTERVAL {
            told = Instant::now();
            println!("{}", soak.line(&purchases.progress.borrow()));
        }
    }
    drop(nuisance);
    let (sent, bought) = purchases.end().await;
    // A call that may not be repeated may be lost with the process that it was sent to.
    let read = reads.end().await.none_failed_but(|ended: &Ended| !ended.is_repeatable);
    let Soak { catalogs: Catalogs { shop, mut replicas, .. }, samples, .. } = soak;
    shop.check(Some(sent)).await;
    for replica in &mut replicas {
        assert!(replica.terminate().await.unwrap().success(), "a replica drains");
    }
    shop.suite.stop().await.unwrap();
    Report { growth: Growth::of_all(&samples, warm_up, duration), verdicts: vec![bought, read] }
}

/// A suite that is disturbed.
struct Soak {
    catalogs: Catalogs,
    rotation: Rotation,
    random: StdRng,
    disturbances: Disturbances,
    /// By process, what it took when.
    samples: BTreeMap<String, Vec<(Duration, Usage)>>,
    begun: Instant,
}

/// How often the suite was disturbed how.
#[derive(Debug, Default)]
struct Disturbances {
    kills: u32,
    drains: u32,
    stops: u32,
    rotations: u32,
}

impl Soak {
    /// Does something to a process, or to all. What a process takes over the time can be
    /// told only of those that live: the services themselves are not killed after the
    /// warm-up.
    async fn disturb(&mut self, warms_up: bool) {
        let Self { catalogs, rotation, random, disturbances, .. } = self;
        let service = Service::ALL[random.random_range(0..Service::ALL.len())];
        let replica = &mut catalogs.replicas[random.random_range(0..REPLICAS)];
        let suite = &mut catalogs.shop.suite;
        match random.random_range(0..10) {
            0 => {
                rotation.introduce().await;
                rotation.remove_old().await;
                disturbances.rotations += 1;
            }
            1 => {
                suite.pause(service).unwrap();
                sleep(STOP).await;
                suite.resume(service).unwrap();
                disturbances.stops += 1;
            }
            2 => {
                replica.pause().unwrap();
                sleep(STOP).await;
                replica.resume().unwrap();
                disturbances.stops += 1;
            }
            3..6 => {
                assert!(replica.terminate().await.unwrap().success(), "a replica drains");
                replica.start().await.unwrap();
                disturbances.drains += 1;
            }
            6 | 7 if warms_up => {
                suite.kill(service).unwrap();
                suite.restart(service).await.unwrap();
                disturbances.kills += 1;
            }
            _ => {
                replica.kill().unwrap();
                replica.start().await.unwrap();
                disturbances.kills += 1;
            }
        }
        sleep(Duration::from_millis(random.random_range(0..PAUSE_LIMIT_MS))).await;
    }

    /// Notes what every process takes, this one included.
    fn sample(&mut self) {
        let Catalogs { shop, replicas, .. } = &self.catalogs;
        let services = Service::ALL.map(|it| (it.to_string(), shop.suite.process_id(it)));
        let replicas = ('a'..).zip(replicas);
        let replicas = replicas
            .map(|(suffix, it)| (format!("{}-{suffix}", Service::Catalog), it.process_id()));
        let own = ("the callers".to_owned(), Some(process::id()));
        let at = self.begun.elapsed();
        for (name, process_id) in services.into_iter().chain(replicas).chain([own]) {
            let usage = process_id.and_then(Usage::of);
            self.samples.entry(name).or_default().extend(usage.map(|usage| (at, usage)));
        }
    }

    fn line(&self, progress: &Progress) -> String {
        let Disturbances { kills, drains, stops, rotations } = self.disturbances;
        let seconds = self.begun.elapsed().as_secs();
        let memory = self.samples.iter().filter_map(|(name, samples)| {
            let (_, usage) = samples.last()?;
            Some(format!("{name} {:.0}", mebibytes(usage.resident_bytes)))
        });
        format!(
            "{:3}:{:02}  {} purchases; {kills} kills, {drains} drains, {stops} stops, \
             {rotations} rotations; MiB: {}",
            seconds / 60,
            seconds % 60,
            progress.answered,
            memory.collect::<Vec<_>>().join(", "),
        )
    }
}

/// Purchases under way, for as long as they are not ended.
struct Purchases {
    progress: Arc<watch::Sender<Progress>>,
    stop: oneshot::Sender<()>,
    buying: JoinHandle<(Sent, Verdict)>,
}

impl Purchases {
    async fn begin(shop: &Shop, seed: u64) -> Self {
        let products = join_all((0..20).map(|number| shop.product(100 + number, 1_000_000))).await;
        let users = join_all((0..20).map(|number| shop.user(number * 10_000_000))).await;
        let users = users.into_iter().map(|user| user.id).collect();
        let progress = Arc::new(watch::Sender::new(Progress::default()));
        let (stop, stopped) = oneshot::channel();
        let (clients, reported) = (shop.clients.clone(), Arc::clone(&progress));
        let buying = tokio::spawn(buy(clients, users, products, seed, reported, stopped));
        Self { progress, stop, buying }
    }

    /// Buys no more, and tells what was sent and whether all of it was answered.
    async fn end(self) -> (Sent, Verdict) {
        let _ = self.stop.send(());
        self.buying.await.unwrap()
    }
}

async fn buy(
    clients: Clients,
    users: Vec<String>,
    products: Vec<Product>,
    seed: u64,
    progress: Arc<watch::Sender<Progress>>,
    mut stopped: oneshot::Receiver<()>,
) -> (Sent, Verdict) {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut sent, mut answered) = (Sent::default(), 0);
    let mut unanswered = Vec::new();
    let mut schedule = interval(BATCH_INTERVAL);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = schedule.tick() => {}
        }
        let orders = load::choose(BATCH, &users, &products, &mut random);
        let options = load::Options { seed: random.random(), ..load::Options::default() };
        let mut outcome = load::run(&clients, orders, &options, &progress).await;
        answered += outcome.answered();
        unanswered.append(&mut outcome.unanswered);
        sent.merge(outcome.sent);
    }
    let found = format!("{answered} purchases answered, {} not", unanswered.len());
    match unanswered.first() {
        None => (sent, Ok(found)),
        Some((_, status)) => (sent, Err(format!("{found}, as one with {status}"))),
    }
}

/// Peers that are slow, and streams whose readers come and go. They are there for as long
/// as what is returned.
fn nuisance(shop: &Shop) -> JoinSet<()> {
    let mut nuisance = JoinSet::new();
    for service in Service::ALL {
        let line = Line::new(&shop.suite, service, Credential::OPERATOR);
        nuisance.spawn(async move {
            loop {
                // They are nobody's business if they cannot even connect.
                let silent = join_all((0..SLOW_PEERS).map(|_| line.connect())).await;
                let hello = join_all((0..SLOW_PEERS).map(|_| line.hello())).await;
                sleep(SLOWNESS).await;
                drop((silent, hello));
            }
        });
    }
    for number in 0..SLOW_PEERS {
        let mut catalog = shop.clients.catalog.clone();
        nuisance.spawn(async move {
            loop {
                let watch = catalog.watch_products(WatchProductsRequest::default()).await;
                let export = catalog.export_products(ExportProductsRequest::default()).await;
                let reading = async {
                    if let Ok(export) = export {
                        read(export.into_inner()).await;
                    }
                    match watch {
                        Ok(watch) if number % 2 == 0 => read(watch.into_inner()).await,
                        // Nobody reads it.
                        Ok(_unread) => future::pending().await,
                        Err(_) => {}
                    }
                };
                let _ = timeout(SLOWNESS, reading).await;
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    nuisance
}

async fn read<T>(mut stream: Streaming<T>) {
    while let Ok(Some(_)) = stream.message().await {}
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    growth: Vec<Growth>,
    verdicts: Vec<Verdict>,
}

/// How much more a process took at the end than after the warm-up.
#[derive(Debug)]
struct Growth {
    process: String,
    after_warm_up: Usage,
    at_end: Usage,
}

impl Growth {
    /// Of every process that was there, by the middle of a fifth of the time each.
    fn of_all(
        samples: &BTreeMap<String, Vec<(Duration, Usage)>>,
        warm_up: Duration,
        duration: Duration,
    ) -> Vec<Self> {
        let fifth = duration.saturating_sub(warm_up) / 5;
        let growth = samples.iter().filter_map(|(process, samples)| {
            Some(Self {
                process: process.clone(),
                after_warm_up: typical(samples, warm_up..warm_up + fifth)?,
                at_end: typical(samples, duration.saturating_sub(fifth)..Duration::MAX)?,
            })
        });
        growth.collect()
    }

    fn is_flat(&self) -> bool {
        let Self { after_warm_up: before, at_end: after, .. } = self;
        after.resident_bytes <= before.resident_bytes + BYTES_LIMIT
            && after.descriptors <= before.descriptors + DESCRIPTORS_LIMIT
    }
}

/// The sample of a time in whose place half of them take more memory.
fn typical(samples: &[(Duration, Usage)], time: Range<Duration>) -> Option<Usage> {
    let of_time = samples.iter().filter(|(at, _)| time.contains(at));
    let mut of_time: Vec<_> = of_time.map(|(_, usage)| *usage).collect();
    of_time.sort_by_key(|usage| usage.resident_bytes);
    of_time.get(of_time.len() / 2).copied()
}

impl Report {
    /// Whether all calls were answered that had to be, and nothing grew.
    pub fn holds(&self) -> bool {
        self.verdicts.iter().all(Result::is_ok) && self.growth.iter().all(Growth::is_flat)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { growth, verdicts } = self;
        writeln!(formatter, "{:20} {:>26} {:>26}", "", "MiB after warm-up, at end", "files")?;
        for growth in growth {
            let Growth { process, after_warm_up: before, at_end: after } = growth;
            let [less, more] = [before, after].map(|usage| mebibytes(usage.resident_bytes));
            let flat = if growth.is_flat() { "flat" } else { "GROWS" };
            let (few, many) = (before.descriptors, after.descriptors);
            writeln!(formatter, "{process:20} {less:13.1} {more:12.1} {few:13} {many:12}  {flat}")?;
        }
        for verdict in verdicts {
            let (Ok(found) | Err(found)) = verdict;
            writeln!(formatter, "{found}")?;
        }
        write!(formatter, "the books are in order")
    }
}

#[expect(clippy::cast_precision_loss, reason = "no process takes so much")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
