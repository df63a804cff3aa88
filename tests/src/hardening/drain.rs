//! SIGTERM while peers do nothing of what a drain asks of them.

use std::{
    io,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use chandlery::{service::Service, suite::Credential};
use futures::FutureExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    net::unix::pipe,
    time::timeout,
};

use super::{
    Bench, Case, Verdict,
    catalog::{EXPORT, IMPORT, WATCH_HEALTH, WATCH_PRODUCTS},
};
use crate::{
    peer::{
        Line, Peer,
        frame::{INITIAL_WINDOW_SIZE, PREFACE},
    },
    shop::Shop,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "SIGTERM with silent and stopped peers",
        must_hold: "exit 0 in less than 3 s, whatever the drain deadline",
        run: |bench| drain_without_calls(bench).boxed(),
    },
    Case {
        name: "SIGTERM with calls that do not end",
        must_hold: "exit 0 within the drain deadline + 1 s",
        run: |bench| drain_with_calls(bench).boxed(),
    },
];

/// How many peers of each kind there are.
const COUNT: usize = 4;
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(20);

async fn drain_without_calls(bench: Bench) -> Verdict {
    const LIMIT: Duration = Duration::from_secs(3);
    let mut shop = Shop::open(&bench.program).await;
    shop.product(100, 10).await;
    let _idle = Idle::gather(&shop).await.unwrap();
    let _stopped = stop_callers(&bench.program, &shop).await;
    exit_within(&bench, &mut shop, LIMIT).await
}

async fn drain_with_calls(bench: Bench) -> Verdict {
    const DEADLINE: &str = "3";
    const LIMIT: Duration = Duration::from_secs(4);
    let environment = [("DRAIN_DEADLINE_SECONDS", DEADLINE)];
    let mut shop = Shop::open_with(&bench.program, &environment).await;
    shop.product(100, 10).await;
    let _idle = Idle::gather(&shop).await.unwrap();
    let _stopped = stop_callers(&bench.program, &shop).await;
    let _busy = Busy::gather(&shop).await.unwrap();
    exit_within(&bench, &mut shop, LIMIT).await
}

/// Terminates the catalog, and finds how it ends and after how long.
async fn exit_within(bench: &Bench, shop: &mut Shop, limit: Duration) -> Verdict {
    let begun = Instant::now();
    let status = shop.suite.terminate(Service::Catalog).await.unwrap();
    let elapsed = begun.elapsed();
    let found = format!("{status} after {:.2} s", elapsed.as_secs_f64());
    // What is late on a machine that does other things is not left open.
    let limit = limit + bench.scale.choose(Duration::from_secs(5), Duration::ZERO);
    if status.success() && elapsed < limit { Ok(found) } else { Err(found) }
}

/// Connections on which no call is under way, and whose peers say no more.
struct Idle {
    _unfinished: Vec<Box<dyn AsyncRead + Send + Unpin>>,
    _open: Vec<Peer>,
}

impl Idle {
    async fn gather(shop: &Shop) -> io::Result<Self> {
        let line = Line::new(&shop.suite, Service::Catalog, Credential::OPERATOR);
        let (mut unfinished, mut open) = (Vec::<Box<dyn AsyncRead + Send + Unpin>>::new(), vec![]);
        for _ in 0..COUNT {
            unfinished.push(Box::new(line.connect().await?));
            unfinished.push(Box::new(line.hello().await?));
            unfinished.push(Box::new(line.shake_hands().await?));
            let mut half = line.shake_hands().await?;
            half.write_all(&PREFACE[..PREFACE.len() / 2]).await?;
            half.flush().await?;
            unfinished.push(Box::new(half));
            let mut peer = line.open(&[]).await?;
            peer.settle().await?;
            open.push(peer);
        }
        Ok(Self { _unfinished: unfinished, _open: open })
    }
}

/// Connections with calls whose callers neither read nor go away.
struct Busy {
    _peers: Vec<Peer>,
}

impl Busy {
    async fn gather(shop: &Shop) -> io::Result<Self> {
        let line = Line::new(&shop.suite, Service::Catalog, Credential::OPERATOR);
        let mut peers = Vec::new();
        // A window of one byte lets the answer begin, and none does not.
        for window in [0, 1] {
            for call in [WATCH_HEALTH, WATCH_PRODUCTS, EXPORT] {
                let mut peer = line.open(&[(INITIAL_WINDOW_SIZE, window)]).await?;
                let stream = peer.writer.call(&call).await?;
                peer.next_on(stream).await?;
                peers.push(peer);
            }
            let mut peer = line.open(&[(INITIAL_WINDOW_SIZE, window)]).await?;
            peer.writer.begin(&IMPORT).await?;
            peer.settle().await?;
            peers.push(peer);
        }
        Ok(Self { _peers: peers })
    }
}

/// Processes that follow the health and the products of the catalog, stopped in the midst
/// of it.
async fn stop_callers(program: &str, shop: &Shop) -> Vec<Stopped> {
    let mut stopped = Vec::new();
    for rpc in ["Health/Watch", "WatchProducts"] {
        let mut child = Command::new(program)
            .args(["call", rpc, "--service", Service::Catalog.name()])
            .args(["--target", &format!("static:///{}", shop.suite.address(Service::Catalog))])
            .arg("--certs")
            .arg(shop.suite.certificates())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = pipe::Receiver::from_owned_fd(child.stdout.take().unwrap().into()).unwrap();
        let child = Stopped(child);
        let (mut answers, mut first) = (BufReader::new(answers), String::new());
        let answered = answers.read_line(&mut first);
        let length = timeout(PATIENCE, answered).await.expect("it is answered in time").unwrap();
        assert!(length > 0, "{rpc} is answered");
        kill_process(Pid::from_child(&child.0), Signal::STOP).unwrap();
        stopped.push(child);
    }
    stopped
}

/// A process that is killed when it is dropped.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
