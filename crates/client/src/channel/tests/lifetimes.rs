//! How long connections live.

use std::{collections::HashSet, future::ready};

use tempfile::TempDir;
use tokio::{runtime::Handle, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{server::ok, *};

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let authority = Authority::new();
    let identity = authority.identity(CATALOG);
    let server = Server::start_silent(&identity).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));

    let address = server.address;
    let (lost, ()) = tokio::join!(check(&channel), async move {
        until(|| server.seen.calls() == 1).await;
        drop(server);
    });
    assert_unavailable(lost, &["catalog-service at"]);

    let _server = Server::serve_on(address, &identity, |_| ready(ok())).await;
    until(|| is_ready(&endpoints(&channel)[0])).await;
    sign_in(&channel).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_keeps_no_connection_is_not_asked_all_the_time() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    // It finds out about the certificate when the caller takes the connection for made.
    let channel = channel(server.target(), &authority.identity_until(PURCHASE, 2020));
    let rests = |endpoint: EndpointSnapshot| match endpoint.state {
        EndpointState::Failed { reason, retry_in } => {
            assert!(reason.contains("the connection was lost"), "{reason}");
            retry_in > Duration::from_secs(1)
        }
        _ => false,
    };
    until(|| endpoints(&channel).into_iter().any(rests)).await;
    assert_unavailable(check(&channel).await, &["the connection was lost"]);
}

#[tokio::test]
async fn a_channel_that_is_dropped_leaves_nothing_behind() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let channel = channel(
        format!("static:///{},{}", server.address, unused_address()),
        &authority.identity(PURCHASE),
    );
    let mut client = HealthClient::new(channel.clone());
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(endpoints(&channel)[0].open_calls, 1);

    drop((channel, client));
    // What is open goes on.
    let next = tokio::time::timeout(Duration::from_millis(100), stream.message()).await;
    next.unwrap_err();
    assert_eq!(server.seen.connections.load(Ordering::Relaxed), 1);
    drop(stream);
    until(|| server.seen.connections.load(Ordering::Relaxed) == 0).await;
    until(|| tasks() == before).await;
}

#[tokio::test]
async fn a_renewal_replaces_connections_and_fails_no_call() {
    const CALLS: usize = 200;
    let authority = Authority::new();
    let (release, released) = watch::channel(0);
    let server = Server::serve(&authority.identity(CATALOG), move |_| {
        let mut released = released.clone();
        async move {
            let round = *released.borrow();
            released.wait_for(|it| *it > round).await.unwrap();
            ok()
        }
    })
    .await;
    let folder = TempDir::new().unwrap();
    let files = authority.write_identity(folder.path(), PURCHASE, 2099);
    let channel = channel(server.target(), &Identity::load(&files).unwrap());
    let callers = || server.seen.callers.lock().unwrap().iter().cloned().collect::<HashSet<_>>();

    for round in 1..=5 {
        let mut calls = JoinSet::new();
        for _ in 0..CALLS {
            let channel = channel.clone();
            calls.spawn(async move { sign_in(&channel).await });
        }
        until(|| server.seen.calls() == round * CALLS).await;
        authority.write_identity(folder.path(), PURCHASE, 2099);
        until(|| callers().len() == round + 1).await;
        release.send_replace(round);
        for result in calls.join_all().await {
            result.unwrap();
        }
    }
    // As many as 200 open calls want, and the old ones are gone.
    until(|| server.seen.connections.load(Ordering::Relaxed) == 4).await;
    assert_eq!(endpoints(&channel)[0].connections, 4);
    assert_eq!(channel.snapshot().attempts, 5 * CALLS as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_call() {
    let authority = Authority::new();
    let identity = authority.identity(CATALOG);
    let answer = |_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        ok()
    };
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::serve(&identity, answer).await);
    }
    let addresses: Vec<_> = servers.iter().map(|it| it.address.to_string()).collect();
    let target = format!("static:///{}", addresses.join(","));
    let channel = channel(target, &authority.identity(PURCHASE));
    let is_over = CancellationToken::new();
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let (channel, is_over) = (channel.clone(), is_over.clone());
        callers.spawn(async move {
            while !is_over.is_cancelled() {
                sign_in(&channel).await.unwrap();
            }
        });
    }
    for round in 0..6 {
        let count = |server: &Server| server.seen.calls() > 20;
        until(|| servers.iter().all(count)).await;
        let old = servers.remove(0);
        let address = old.address;
        old.drain().await;
        until(|| endpoints(&channel).iter().filter(|it| is_ready(it)).count() == 2).await;
        servers.push(Server::serve_on(address, &identity, answer).await);
        assert!(callers.try_join_next().is_none(), "a call failed in round {round}");
    }
    is_over.cancel();
    callers.join_all().await;
}
