//! Calls that a peer answers with a failure.

use std::{future::ready, sync::Mutex};

use http::Response;
use tokio::{task::JoinSet, time::Instant};

use super::{
    server::{message, ok},
    *,
};

fn unavailable(push_back: Option<&'static str>) -> Response<Body> {
    let mut status = Status::unavailable("not today");
    if let Some(push_back) = push_back {
        status.metadata_mut().insert("grpc-retry-pushback-ms", push_back.parse().unwrap());
    }
    status.into_http()
}

/// A server that gives one answer after another, and OK when there are no more.
async fn serve(authority: &Authority, mut answers: Vec<Response<Body>>) -> Server {
    answers.reverse();
    let answers = Mutex::new(answers);
    Server::serve(&authority.identity(CATALOG), move |_| {
        ready(answers.lock().unwrap().pop().unwrap_or_else(ok))
    })
    .await
}

#[tokio::test]
async fn a_failure_is_retried_if_a_repeat_does_no_harm() {
    let authority = Authority::new();
    let answers = (0..3).map(|_| unavailable(None)).collect();
    let server = serve(&authority, answers).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let status = sign_in(&channel).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "not today"));
    assert_eq!(server.seen.calls(), 1);

    reserve(&channel).await.unwrap();
    let requests = server.seen.requests.lock().unwrap();
    let previous = requests.iter().map(|it| it.get("grpc-previous-rpc-attempts"));
    let previous: Vec<_> = previous.map(|it| it.map(|it| it.to_str().unwrap())).collect();
    assert_eq!(previous, [None, None, Some("1"), Some("2")]);
}

#[tokio::test]
async fn an_outage_is_not_multiplied() {
    let authority = Authority::new();
    let identity = authority.identity(CATALOG);
    let server = Server::serve(&identity, |_| ready(unavailable(None))).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let mut calls = JoinSet::new();
    for _ in 0..500 {
        let channel = channel.clone();
        calls.spawn(async move { reserve(&channel).await });
    }
    for result in calls.join_all().await {
        assert_unavailable(result, &["not today"]);
    }
    assert!((501..=600).contains(&server.seen.calls()), "{}", server.seen.calls());
    let Snapshot { calls, attempts, .. } = channel.snapshot();
    assert_eq!((calls, attempts), (500, server.seen.calls() as u64));
}

#[tokio::test]
async fn a_server_says_when_to_come_back_and_whether() {
    let authority = Authority::new();
    let answers = vec![unavailable(Some("300")), ok(), unavailable(Some("-1"))];
    let server = serve(&authority, answers).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let began = Instant::now();
    reserve(&channel).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_unavailable(reserve(&channel).await, &["not today"]);
    assert_eq!(server.seen.calls(), 3);
}

#[tokio::test]
async fn a_retry_goes_elsewhere() {
    let authority = Authority::new();
    let identity = authority.identity(CATALOG);
    let ill = Server::serve(&identity, |_| ready(unavailable(None))).await;
    let well = Server::serve(&identity, |_| ready(ok())).await;
    let channel = Channel::to(format!("static:///{},{}", ill.address, well.address))
        .identity(authority.identity(PURCHASE))
        .peer(CATALOG)
        .balance(Balance::RoundRobin)
        .build()
        .unwrap();
    until(|| endpoints(&channel).iter().filter(|it| is_ready(it)).count() == 2).await;
    for _ in 0..10 {
        reserve(&channel).await.unwrap();
    }
    assert_eq!((ill.seen.calls(), well.seen.calls()), (5, 10));
    let failures: Vec<_> = endpoints(&channel).iter().map(|it| it.failures).collect();
    assert_eq!(failures, [5, 0]);
}

#[tokio::test]
async fn a_response_that_is_too_long_is_refused_and_not_kept() {
    let authority = Authority::new();
    let identity = authority.identity(CATALOG);
    let server = Server::serve(&identity, |_| ready(message(5 << 20))).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let status = reserve(&channel).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}
