//! Who is called, and who is not.

use std::future::ready;

use tempfile::TempDir;

use super::{server::ok, *};

#[tokio::test]
async fn the_peer_of_the_right_name_is_called() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    check(&channel).await.unwrap();
}

#[tokio::test]
async fn a_peer_of_another_name_is_not_called() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(PURCHASE)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    assert_unavailable(
        check(&channel).await,
        &[
            &format!("catalog-service at {}", server.target()),
            &format!("expected {CATALOG}, found {PURCHASE}"),
        ],
    );
    assert!(server.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_peer_of_a_foreign_authority_is_not_called() {
    let server = Server::start(&Authority::new().identity(CATALOG)).await;
    let channel = channel(server.target(), &Authority::new().identity(PURCHASE));
    assert_unavailable(
        check(&channel).await,
        &["no authority of the trust bundle issued the certificate"],
    );
}

#[tokio::test]
async fn a_peer_whose_certificate_has_expired_is_not_called() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity_until(CATALOG, 2020)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    assert_unavailable(check(&channel).await, &["has expired"]);
}

#[tokio::test]
async fn a_peer_whose_authority_is_removed_gets_no_call_over_the_connection_that_it_has() {
    let authority = Authority::new();
    let server = Server::serve(&authority.identity(CATALOG), |_| ready(ok())).await;
    let folder = TempDir::new().unwrap();
    let files = authority.write_identity(folder.path(), PURCHASE, 2099);
    let channel = channel(server.target(), &Identity::load(&files).unwrap());
    check(&channel).await.unwrap();

    Authority::new().write_identity(folder.path(), PURCHASE, 2099);
    until(|| !is_ready(&endpoints(&channel)[0])).await;
    let calls = server.seen.calls();
    assert_unavailable(
        check(&channel).await,
        &["no authority of the trust bundle issued the certificate"],
    );
    assert_eq!(server.seen.calls(), calls);
}

#[tokio::test]
async fn a_caller_whose_certificate_has_expired_is_refused() {
    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity_until(PURCHASE, 2020));
    assert_unavailable(check(&channel).await, &["catalog-service at"]);
    assert!(server.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_channel_that_lacks_something_is_not_built() {
    let identity = Authority::new().identity(PURCHASE);
    let to = |target: &str| Channel::to(target).identity(identity.clone());
    let refusal = |builder: Builder| builder.build().unwrap_err().to_string();

    assert_eq!(
        refusal(to("k8s:///a:1").peer(CATALOG)),
        "\"k8s:///a:1\" is no target: its scheme is none of static:///, dns:/// and unix:///; give \
         static:///host:port[,host:port]..., dns:///host:port or unix:///absolute/path"
    );
    assert_eq!(
        refusal(to("static:///a:1")),
        "the channel to static:///a:1 has no peer; name its SPIFFE ID with `peer`"
    );
    assert_eq!(
        refusal(to("static:///a:1").peer("catalog-service")),
        "the peer of static:///a:1 is not named: \"catalog-service\" is not a SPIFFE ID of the \
         form spiffe://<trust domain>/ns/<namespace>/sa/<workload>"
    );
    assert_eq!(
        refusal(Channel::to("static:///a:1").peer(CATALOG)),
        "the channel to static:///a:1 has no identity; give one with `identity`"
    );
}
