//! The end of a call, whether answered or not.

use proto::catalog::v1::ReserveRequest;

use super::*;

#[tokio::test]
async fn a_slow_answer_is_not_awaited_beyond_the_deadline() {
    let authority = Authority::new();
    let server = Server::start_silent(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let status = check_within(&channel, Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[tokio::test]
async fn a_stream_ends_at_the_deadline() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let mut client = HealthClient::new(channel(server.target(), &authority.identity(PURCHASE)));

    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(2));
    let mut stream = client.watch(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let end = tokio::time::timeout(PATIENCE, stream.message()).await;
    assert_eq!(end.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn nothing_is_sent_after_the_deadline() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let passed = Deadline::after(Duration::ZERO);
    let status = deadline::scope(Some(passed), check(&channel)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(server.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_inherited_deadline_shortens_the_timeout_of_a_call() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let inherited = Deadline::after(PATIENCE);

    deadline::scope(Some(inherited), check_within(&channel, 2 * PATIENCE)).await.unwrap();
    assert!(server.last_timeout() <= PATIENCE);

    deadline::scope(Some(inherited), check_within(&channel, PATIENCE / 2)).await.unwrap();
    assert!(server.last_timeout() <= PATIENCE / 2);
}

#[tokio::test]
async fn the_contract_bounds_a_call_that_states_no_timeout() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    let mut client = StockServiceClient::new(channel);

    let status = client.reserve(ReserveRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    assert!(server.last_timeout() <= Duration::from_secs(2));

    let mut longer = tonic::Request::new(ReserveRequest::default());
    longer.set_timeout(Duration::from_mins(1));
    client.reserve(longer).await.unwrap_err();
    assert!(server.last_timeout() > Duration::from_secs(30));
}
