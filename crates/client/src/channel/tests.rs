//! Channels over real sockets and real TLS.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proto::{
    catalog::v1::{ReserveRequest, stock_service_client::StockServiceClient},
    user::v1::{SignInRequest, auth_service_client::AuthServiceClient},
};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use self::server::{Authority, Server};
use super::*;
use crate::{EndpointSnapshot, EndpointState, deadline};

mod deadlines;
mod endpoints;
mod frames;
mod lifetimes;
mod replays;
mod retries;
mod server;
mod telemetry;
mod trust;

const CATALOG: &str = "spiffe://test.local/ns/shop/sa/catalog-service";
const PURCHASE: &str = "spiffe://test.local/ns/shop/sa/purchase-service";

/// More than any of these tests takes, and less than a person waits for.
const PATIENCE: Duration = Duration::from_secs(30);

fn channel(target: impl Into<String>, identity: &Identity) -> Channel {
    Channel::to(target).identity(identity.clone()).peer(CATALOG).build().unwrap()
}

async fn check(channel: &Channel) -> Result<(), Status> {
    check_within(channel, PATIENCE).await
}

async fn check_within(channel: &Channel, timeout: Duration) -> Result<(), Status> {
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(timeout);
    let mut client = HealthClient::new(channel.clone());
    tokio::time::timeout(PATIENCE, client.check(request)).await.unwrap().map(drop)
}

/// A call that the contract lets be repeated.
async fn reserve(channel: &Channel) -> Result<(), Status> {
    let mut request = tonic::Request::new(ReserveRequest::default());
    request.set_timeout(PATIENCE);
    StockServiceClient::new(channel.clone()).reserve(request).await.map(drop)
}

/// A call that it does not.
async fn sign_in(channel: &Channel) -> Result<(), Status> {
    let mut request = tonic::Request::new(SignInRequest::default());
    request.set_timeout(PATIENCE);
    AuthServiceClient::new(channel.clone()).sign_in(request).await.map(drop)
}

fn assert_unavailable(result: Result<(), Status>, reasons: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    for reason in reasons {
        assert!(status.message().contains(reason), "{status}");
    }
}

/// The endpoints of a channel; none while they are not known.
fn endpoints(channel: &Channel) -> Vec<EndpointSnapshot> {
    channel.snapshot().endpoints
}

fn is_ready(endpoint: &EndpointSnapshot) -> bool {
    endpoint.state == EndpointState::Ready
}

/// Returns once the condition holds.
async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition never held");
}

/// An address that nobody listens at.
fn unused_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
