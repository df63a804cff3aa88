//! Which endpoints are called, and what becomes of calls when there are none.

use std::future::{pending, ready};

use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};

use super::{
    server::{ok, serve_socket},
    *,
};
use crate::MAX_STREAMS;

#[tokio::test]
async fn the_next_address_is_called_when_the_first_is_down() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let target = format!("static:///{},{}", unused_address(), server.address);
    check(&channel(target, &authority.identity(PURCHASE))).await.unwrap();
}

#[tokio::test]
async fn every_address_that_is_down_is_named() {
    let (one, other) = (unused_address(), unused_address());
    let target = format!("static:///{one},{other}");
    let channel = channel(target, &Authority::new().identity(PURCHASE));
    assert_unavailable(
        check(&channel).await,
        &[&format!("{one}: "), &format!("{other}: "), "refused"],
    );
}

#[tokio::test]
async fn one_endpoint_that_is_down_fails_no_call() {
    let authority = Authority::new();
    let identity = authority.identity(CATALOG);
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::serve(&identity, |_| ready(ok())).await);
    }
    let addresses: Vec<_> = servers.iter().map(|it| it.address.to_string()).collect();
    let target = format!("static:///{},{}", unused_address(), addresses.join(","));
    let channel = channel(target, &authority.identity(PURCHASE));
    for _ in 0..400 {
        sign_in(&channel).await.unwrap();
    }
    let calls: Vec<_> = servers.iter().map(|it| it.seen.calls()).collect();
    assert_eq!(calls.iter().sum::<usize>(), 400);
    assert!(calls.iter().all(|calls| *calls > 0), "{calls:?}");
    let text = channel.snapshot().to_string();
    assert!(text.contains("failed, again in") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn a_name_without_addresses_has_no_endpoints() {
    let channel = channel("dns:///nowhere.invalid:1", &Authority::new().identity(PURCHASE));
    let expected = "catalog-service at dns:///nowhere.invalid:1 has no endpoints: ";
    assert_unavailable(check(&channel).await, &[expected]);
    assert!(channel.snapshot().discovery_error.is_some());
}

#[tokio::test]
async fn a_peer_that_was_down_is_found_again_within_seconds() {
    let authority = Authority::new();
    let (one, other) = (unused_address(), unused_address());
    let target = format!("static:///{one},{other}");
    let channel = channel(target, &authority.identity(PURCHASE));
    // It looks less and less often, but often enough.
    let mut longest = Duration::ZERO;
    until(|| {
        for endpoint in endpoints(&channel) {
            if let EndpointState::Failed { retry_in, .. } = endpoint.state {
                longest = longest.max(retry_in);
            }
        }
        longest > Duration::from_millis(1_600)
    })
    .await;
    assert!(longest <= Duration::from_millis(2_400));
    let _server = Server::serve_on(other, &authority.identity(CATALOG), |_| ready(ok())).await;
    until(|| is_ready(&endpoints(&channel)[1])).await;
    sign_in(&channel).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_has_just_come_back_is_called() {
    let authority = Authority::new();
    let address = unused_address();
    let channel = channel(format!("static:///{address}"), &authority.identity(PURCHASE));
    let rests = |least: Duration, most: Duration| {
        endpoints(&channel).iter().any(|endpoint| match &endpoint.state {
            EndpointState::Failed { retry_in, .. } => (least..most).contains(retry_in),
            _ => false,
        })
    };
    until(|| rests(Duration::from_millis(1_200), Duration::MAX)).await;
    until(|| rests(Duration::from_millis(500), Duration::from_secs(1))).await;
    let _server = Server::serve_on(address, &authority.identity(CATALOG), |_| ready(ok())).await;
    sign_in(&channel).await.unwrap();
}

#[tokio::test]
async fn a_call_waits_while_it_is_not_known_whether_there_is_anybody() {
    // Whoever connects here is neither taken nor refused.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("static:///{}", listener.local_addr().unwrap());
    let channel = channel(target, &Authority::new().identity(PURCHASE));
    let brief = Duration::from_millis(50);
    let status = check_within(&channel, brief).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_unavailable(check(&channel).await, &["no connection within 2s"]);
}

#[tokio::test]
async fn a_name_is_called_at_its_addresses() {
    let authority = Authority::new();
    let server = Server::serve(&authority.identity(CATALOG), |_| ready(ok())).await;
    let target = format!("dns:///localhost:{}", server.address.port());
    sign_in(&channel(target, &authority.identity(PURCHASE))).await.unwrap();
}

#[tokio::test]
async fn a_socket_in_the_file_system_is_called() {
    let authority = Authority::new();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("catalog.sock");
    let _server = serve_socket(&path, &authority.identity(CATALOG));
    let target = format!("unix://{}", path.display());
    sign_in(&channel(target, &authority.identity(PURCHASE))).await.unwrap();
}

#[tokio::test]
async fn connections_grow_with_the_calls_that_are_open() {
    let authority = Authority::new();
    let server = Server::serve(&authority.identity(CATALOG), |request| async move {
        if request.uri().path().ends_with("/Reserve") {
            pending::<()>().await;
        }
        ok()
    })
    .await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let mut open = JoinSet::new();
    for _ in 0..120 {
        let channel = channel.clone();
        open.spawn(async move { reserve(&channel).await });
    }
    until(|| endpoints(&channel).iter().any(|it| it.connections == 3)).await;
    until(|| server.seen.calls() == 120).await;
    sign_in(&channel).await.unwrap();

    let endpoint = &endpoints(&channel)[0];
    assert_eq!((endpoint.connections, endpoint.open_calls), (3, 120));
    open.shutdown().await;
    assert_eq!(endpoints(&channel)[0].open_calls, 0);
    assert_eq!(server.seen.connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn calls_that_wait_for_room_all_get_it_when_there_is_some() {
    const ROOM: usize = 4 * MAX_STREAMS as usize;
    let authority = Authority::new();
    let (release, released) = watch::channel(false);
    let server = Server::serve(&authority.identity(CATALOG), move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|it| *it).await.unwrap();
            ok()
        }
    })
    .await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let mut calls = JoinSet::new();
    for _ in 0..ROOM + 50 {
        let channel = channel.clone();
        calls.spawn(async move { sign_in(&channel).await });
    }
    until(|| server.seen.calls() == ROOM).await;
    release.send_replace(true);
    for result in calls.join_all().await {
        result.unwrap();
    }
}
