//! Certificates and authorities are replaced while calls are under way, as an authority
//! does it in production: by way of a trust bundle that holds the old and the new.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use chandlery::{
    certs::{self, Authority, Leaf, NAMESPACE, TRUST_DOMAIN, WORKLOADS},
    load,
    service::Service,
    suite::{Credential, Suite},
};
use client::identity::Renewals;
use futures::{
    FutureExt,
    future::{self, join_all},
};
use proto::purchase::v1::{PurchaseState, purchase::Item};
use rand::{SeedableRng, rngs::StdRng};
use service_runtime::Clock;
use tempfile::NamedTempFile;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use super::{
    Bench, Case, Verdict, all,
    catalogs::Catalogs,
    traffic::{Call, Traffic},
};
use crate::{
    peer::{Line, Peer, frame::GOAWAY},
    shop::Shop,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "leaf and CA rotated under load",
        must_hold: "0 failed; then the old identity is refused at every new handshake, and \
                    connections under the removed CA get GOAWAY within 10 s",
        run: |bench| rotate(bench).boxed(),
    },
    Case {
        name: "a certificate without its key",
        must_hold: "the old pair goes on serving, and the log says so",
        run: |bench| break_pair(bench).boxed(),
    },
];

/// How long a certificate is valid.
const VALIDITY: Duration = Duration::from_hours(24);

/// How long a connection of a caller who is not trusted any more may last.
const GOAWAY_LIMIT: Duration = Duration::from_secs(10);

/// How long everybody may take to read new files, which they do every second.
const PATIENCE: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often it is tried to shake hands under a removed authority, with each service.
const HANDSHAKES: usize = 5;

/// The trust bundle of all workloads.
const BUNDLE: &str = "ca.crt";

/// What a process says when it goes on with new files.
const RENEWED: &str = "renewed identity=";

/// What it says when it cannot.
const NOT_RENEWED: &str = "the new identity cannot be used";

async fn rotate(bench: Bench) -> Verdict {
    let mut catalogs = Catalogs::open(&bench, 2).await;
    let channel = catalogs.channel();
    let reads = Traffic::begin(bench.scale.choose(100, 200), catalogs.calls(channel));
    let purchases = purchases(&catalogs.shop, bench.seed).await;
    let purchases = Traffic::begin(bench.scale.choose(10, 20), purchases);

    let suite = &catalogs.shop.suite;
    let lines = Service::ALL.map(|service| Line::new(suite, service, Credential::OPERATOR));
    let held = join_all(lines.iter().map(|line| line.open(&[]))).await;
    let mut rotation = Rotation::of(&catalogs);
    rotation.introduce().await;
    let removed = Instant::now();
    rotation.remove_old().await;
    let mut slowest = Duration::ZERO;
    for (service, peer) in Service::ALL.into_iter().zip(held) {
        let told = timeout(GOAWAY_LIMIT, is_told_to_go(peer.unwrap())).await;
        if told != Ok(true) {
            return Err(format!("{service} keeps a connection under the removed CA"));
        }
        slowest = slowest.max(removed.elapsed());
    }
    for _ in 1..bench.scale.choose(2, 20) {
        rotation.introduce().await;
        rotation.remove_old().await;
    }
    for (service, line) in Service::ALL.into_iter().zip(&lines) {
        for _ in 0..HANDSHAKES {
            if is_admitted(line).await {
                return Err(format!("{service} admits an identity of a removed CA"));
            }
        }
    }
    let found = [reads, purchases].map(async |traffic| traffic.end().await.none_failed());
    let mut found = join_all(found).await;
    found.push(Ok(format!("old identity refused; GOAWAY after {slowest:.1?} at most")));
    all(found)
}

async fn break_pair(bench: Bench) -> Verdict {
    let shop = Shop::open(&bench.program).await;
    let (suite, catalog) = (&shop.suite, Service::Catalog);
    let log = Log::of(suite, catalog);
    let leaf = Leaf::new(catalog.name(), NAMESPACE, shop.now(), VALIDITY);
    let folder = suite.certificates();
    let issued = Authority::load(&folder).unwrap().issue(&leaf).unwrap();
    let files = certs::identity_files(&folder, catalog.name());
    replace(&files.certificate, &issued.certificate_pem);
    log.wait_for(NOT_RENEWED, 1).await;
    let line = Line::new(suite, catalog, Credential::OPERATOR);
    if !is_admitted(&line).await {
        return Err("a new connection is refused".to_owned());
    }
    issued.save(&folder, catalog.name()).unwrap();
    log.wait_for(RENEWED, 1).await;
    if !is_admitted(&line).await {
        return Err("a new connection is refused after the pair was mended".to_owned());
    }
    let (said, renewed) = (log.count(NOT_RENEWED), log.count(RENEWED));
    let found = format!("served on; said so {said} time(s), and of the mended pair {renewed}");
    if (said, renewed) == (1, 1) { Ok(found) } else { Err(found) }
}

/// Purchases, which take every service to call every other.
async fn purchases(shop: &Shop, seed: u64) -> impl FnMut() -> Call + Send + 'static {
    let rope = shop.product(1, 1_000_000).await;
    let user = shop.user(1_000_000).await;
    let client = shop.clients.purchases.clone();
    let mut random = StdRng::seed_from_u64(seed);
    move || {
        let item = Item { product_id: rope.id.clone(), quantity: 1, unit_price: None };
        let order = load::request(&user.id, "EUR", vec![item], &mut random);
        let mut client = client.clone();
        let answer = async move {
            let purchase = client.create_purchase(order).await?.into_inner();
            match purchase.state() {
                PurchaseState::Confirmed => Ok(()),
                state => Err(Status::failed_precondition(state.as_str_name())),
            }
        };
        Call { rpc: "CreatePurchase", is_repeatable: true, answer: answer.boxed() }
    }
}

/// Authorities that follow each other, and all who have to learn of it.
pub(super) struct Rotation {
    folder: PathBuf,
    authority: Authority,
    logs: Vec<Log>,
    renewals: Renewals,
}

impl Rotation {
    /// Of the certificates of all catalogs, and of the other services.
    pub(super) fn of(catalogs: &Catalogs) -> Self {
        let suite = &catalogs.shop.suite;
        let own = Service::ALL.map(|service| Log::of(suite, service));
        let others = catalogs.replicas.iter().map(|replica| Log(replica.log_file()));
        let folder = suite.certificates();
        Self {
            authority: Authority::load(&folder).unwrap(),
            folder,
            logs: own.into_iter().chain(others).collect(),
            renewals: catalogs.identity.renewals(),
        }
    }

    /// Has everybody trust a new authority too, and then go by its certificates.
    pub(super) async fn introduce(&mut self) {
        let now = Clock::system().now();
        let new = Authority::create(TRUST_DOMAIN, now).unwrap();
        let both = [&self.authority, &new].map(Authority::certificate_pem).concat();
        self.publish(|folder| replace(&folder.join(BUNDLE), &both)).await;
        self.publish(|folder| {
            for workload in WORKLOADS {
                let leaf = Leaf::new(workload, NAMESPACE, now, VALIDITY);
                new.issue(&leaf).unwrap().save(folder, workload).unwrap();
            }
        })
        .await;
        self.authority = new;
    }

    /// Has nobody trust the authority before this one any more.
    pub(super) async fn remove_old(&mut self) {
        let bundle = self.authority.certificate_pem().to_owned();
        self.publish(|folder| replace(&folder.join(BUNDLE), &bundle)).await;
    }

    /// Writes new files, and waits until all have read them.
    async fn publish(&mut self, write: impl FnOnce(&Path)) {
        let logs: Vec<_> = self.logs.iter().map(|log| (log, log.count(RENEWED) + 1)).collect();
        write(&self.folder);
        let others = join_all(logs.into_iter().map(|(log, times)| log.wait_for(RENEWED, times)));
        timeout(PATIENCE, future::join(self.renewals.next(), others))
            .await
            .expect("everybody reads the new files in time");
    }
}

/// The log of a process.
struct Log(PathBuf);

impl Log {
    fn of(suite: &Suite, service: Service) -> Self {
        Self(suite.directory().join(format!("{service}.log")))
    }

    fn count(&self, text: &str) -> usize {
        fs::read_to_string(&self.0).unwrap().matches(text).count()
    }

    async fn wait_for(&self, text: &str, times: usize) {
        let said = async {
            while self.count(text) < times {
                sleep(POLL_INTERVAL).await;
            }
        };
        let is_said = timeout(PATIENCE, said).await.is_ok();
        assert!(is_said, "{} does not say {text:?} {times} time(s)", self.0.display());
    }
}

/// Replaces a file at once.
fn replace(path: &Path, contents: &str) {
    let file = NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    fs::write(&file, contents).unwrap();
    file.persist(path).unwrap();
}

/// Whether the service speaks on a new connection.
async fn is_admitted(line: &Line) -> bool {
    // A client of TLS 1.3 is done before the service has seen who it is.
    let speaks = async { line.open(&[]).await?.next_on(0).await };
    let spoken = timeout(PATIENCE, speaks).await.expect("it is admitted or refused in time");
    matches!(spoken, Ok(Some(_)))
}

/// Whether a connection ends with GOAWAY.
async fn is_told_to_go(mut peer: Peer) -> bool {
    while let Ok(Some(frame)) = peer.next_on(0).await {
        if frame.kind == GOAWAY {
            return true;
        }
    }
    false
}
