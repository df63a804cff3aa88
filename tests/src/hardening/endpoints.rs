//! Endpoints go, come back, or were never there, and callers do not notice where one is
//! left that answers.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use client::{Balance, Channel};
use futures::FutureExt;
use proto::catalog::v1::{ListProductsRequest, catalog_service_client::CatalogServiceClient};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::{Instant, sleep},
};
use tonic::{Code, Request, Status};

use super::{
    Bench, Case, Verdict, all,
    catalogs::Catalogs,
    traffic::{Ended, Traffic, effort},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "rolling restart of three replicas",
        must_hold: "0 failed",
        run: |bench| rolling_restart(bench).boxed(),
    },
    Case {
        name: "SIGKILL of one of three replicas",
        must_hold: "0 idempotent calls failed; others only in flight",
        run: |bench| kill(bench).boxed(),
    },
    Case {
        name: "one of four endpoints dead from the start",
        must_hold: "0 failed",
        run: |bench| one_dead(bench).boxed(),
    },
    Case {
        name: "an empty set of endpoints",
        must_hold: "a clear UNAVAILABLE in time",
        run: |bench| empty_set(bench).boxed(),
    },
    Case {
        name: "all endpoints down, then up",
        must_hold: "UNAVAILABLE in time; recovered in less than 5 s",
        run: |bench| all_down(bench).boxed(),
    },
];

const REPLICAS: usize = 3;

const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// How long a call is waited for that should end long before.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for every back-off to have reached its limit.
const LONG_OUTAGE: Duration = Duration::from_secs(20);

const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// How long the lookup of a name, or a connection to an address, may be waited for
/// before the call ends that needs it: as the client promises, and a second.
const CLEAR_ANSWER_LIMIT: Duration = Duration::from_secs(6);

/// How long callers may take to find endpoints that are back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

/// How long calls may be written to a process that is gone, before the end of its
/// connections has been noticed.
const NOTICE_LIMIT: Duration = Duration::from_millis(250);

/// Calls a second.
fn rate(bench: &Bench) -> u32 {
    bench.scale.choose(200, 500)
}

async fn rolling_restart(bench: Bench) -> Verdict {
    let mut catalogs = Catalogs::open(&bench, REPLICAS).await;
    let channel = catalogs.channel();
    let traffic = Traffic::begin(rate(&bench), catalogs.calls(channel.clone()));
    // What a rollout waits for at least, so that callers find a replica before the next goes.
    let second = rate(&bench) as usize;
    traffic.wait_for_more(second).await;
    for _ in 0..bench.scale.choose(2, 10) {
        for replica in &mut catalogs.replicas {
            let status = replica.terminate().await.unwrap();
            if !status.success() {
                return Err(format!("a catalog ended with {status} after SIGTERM"));
            }
            replica.start().await.unwrap();
            traffic.wait_for_more(second).await;
        }
    }
    let verdict = traffic.end().await.none_failed();
    all(vec![verdict, Ok(effort(&channel))])
}

async fn kill(bench: Bench) -> Verdict {
    /// So many calls are in flight to a process at least when it is killed.
    const IN_FLIGHT: usize = 5;
    let mut catalogs = Catalogs::open(&bench, REPLICAS).await;
    let mut random = StdRng::seed_from_u64(bench.seed);
    // Each in turn, so that none is spared that has become slow.
    let balance = Balance::RoundRobin;
    let channel = catalogs.to(&catalogs.target()).balance(balance).build().unwrap();
    let traffic = Traffic::begin(rate(&bench), catalogs.calls(channel.clone()));
    // Long enough for the retry budget to allow for all that may be in flight.
    traffic.wait_for_more(500).await;
    let mut kills = Vec::new();
    for _ in 0..bench.scale.choose(3, 10) {
        let replica = &mut catalogs.replicas[random.random_range(0..REPLICAS)];
        // What reaches it from now on is in flight when it is killed.
        replica.pause().unwrap();
        traffic.wait_for(|progress| progress.open >= IN_FLIGHT).await;
        let begun = Instant::now();
        replica.kill().unwrap();
        kills.push(begun..Instant::now() + NOTICE_LIMIT);
        traffic.wait_for_more(200).await;
        replica.start().await.unwrap();
        traffic.wait_for_more(200).await;
    }
    // It had begun before the end of the connection was noticed, and ended by it.
    let was_in_flight =
        |ended: &Ended| kills.iter().any(|kill| ended.begun < kill.end && ended.at() >= kill.start);
    let may_fail = |ended: &Ended| !ended.is_repeatable && was_in_flight(ended);
    let verdict = traffic.end().await.none_failed_but(may_fail);
    all(vec![verdict, Ok(effort(&channel))])
}

async fn one_dead(bench: Bench) -> Verdict {
    let mut catalogs = Catalogs::open(&bench, REPLICAS).await;
    // One that refuses every connection, and one that accepts them and says nothing.
    let refusing = TcpSocket::new_v4().unwrap();
    refusing.bind(ANY_PORT).unwrap();
    let silent = TcpListener::bind(ANY_PORT).await.unwrap();
    let mut found = Vec::new();
    for (kind, dead) in [("refuses", refusing.local_addr()), ("is silent", silent.local_addr())] {
        let target = catalogs.target().replace("///", &format!("///{},", dead.unwrap()));
        let calls = catalogs.calls(catalogs.to(&target).build().unwrap());
        let traffic = Traffic::begin(rate(&bench), calls);
        traffic.wait_for_more(bench.scale.choose(600, 10_000)).await;
        let verdict = traffic.end().await.none_failed();
        found.push(verdict.map(|found| format!("one {kind}: {found}")));
    }
    all(found)
}

async fn empty_set(bench: Bench) -> Verdict {
    let catalogs = Catalogs::open(&bench, 0).await;
    let nowhere = catalogs.shop.suite.directory().join("nobody.sock");
    let targets = ["dns:///nowhere.invalid:1".to_owned(), format!("unix:///{}", nowhere.display())];
    let mut found = Vec::new();
    for target in targets {
        let (answer, took) = ask(catalogs.to(&target).build().unwrap()).await;
        found.push(is_clear(answer, took).map(|found| format!("{target}: {found}")));
    }
    all(found)
}

async fn all_down(bench: Bench) -> Verdict {
    let mut catalogs = Catalogs::open(&bench, REPLICAS).await;
    let channel = catalogs.channel();
    ask(channel.clone()).await.0.map_err(|status| status.to_string())?;
    for replica in &mut catalogs.replicas {
        replica.kill().unwrap();
    }
    let mut found = Vec::new();
    let down_until = Instant::now() + bench.scale.choose(Duration::from_secs(4), LONG_OUTAGE);
    while Instant::now() < down_until {
        let (answer, took) = ask(channel.clone()).await;
        found.push(is_clear(answer, took));
        sleep(ASK_INTERVAL).await;
    }
    let asked = found.len();
    all(found)?;
    catalogs.replicas[0].start().await.unwrap();
    let begun = Instant::now();
    while ask(channel.clone()).await.0.is_err() && begun.elapsed() < RECOVERY_LIMIT {
        sleep(ASK_INTERVAL).await;
    }
    let took = begun.elapsed();
    let found = format!("{asked} calls answered UNAVAILABLE; recovered after {took:.1?}");
    if took < RECOVERY_LIMIT { Ok(found) } else { Err(found) }
}

/// A call, and how long its answer took.
async fn ask(channel: Channel) -> (Result<(), Status>, Duration) {
    let mut request = Request::new(ListProductsRequest::default());
    request.set_timeout(PATIENCE);
    let begun = Instant::now();
    let answer = CatalogServiceClient::new(channel).list_products(request).await;
    (answer.map(drop), begun.elapsed())
}

/// That a call was answered UNAVAILABLE, in words, long before its deadline.
fn is_clear(answer: Result<(), Status>, took: Duration) -> Verdict {
    let found = match &answer {
        Ok(()) => format!("OK after {took:.1?}"),
        Err(status) => format!("{:?} after {took:.1?}: {}", status.code(), status.message()),
    };
    let is_unavailable = answer.is_err_and(|status| status.code() == Code::Unavailable);
    if is_unavailable && took < CLEAR_ANSWER_LIMIT { Ok(found) } else { Err(found) }
}
