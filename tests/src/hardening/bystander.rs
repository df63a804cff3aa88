//! Somebody who behaves while others do not, and is to be served all the same.

use std::{
    fmt,
    time::{Duration, Instant},
};

use chandlery::{
    certs::{NAMESPACE, TRUST_DOMAIN},
    service::Service,
    suite::Credential,
};
use client::Channel;
use proto::catalog::v1::{ListProductsRequest, catalog_service_client::CatalogServiceClient};
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::JoinHandle,
    time::sleep,
};
use tonic::{Request, Status, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::Scale;
use crate::shop::Shop;

/// How long ListProducts may take by the contract.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a probe of Kubernetes waits unless it is told otherwise.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long either waits on a machine that does other things.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// Somebody who calls again and again.
pub(super) struct Bystander {
    leave: oneshot::Sender<()>,
    calls: JoinHandle<Served>,
}

/// How somebody was served.
#[derive(Debug, Default)]
pub(super) struct Served {
    calls: usize,
    slowest: Duration,
    failed: Vec<Status>,
}

impl Bystander {
    /// Calls the catalog, each time over the connection that he has had from the start and
    /// over a new one.
    pub(super) fn call_catalog(shop: &Shop, scale: Scale, pause: Duration) -> Self {
        let identity = shop.suite.identity(Credential::OPERATOR).unwrap();
        let target = format!("static:///{}", shop.suite.address(Service::Catalog));
        let peer = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", Service::Catalog);
        let connect = move || {
            let channel = Channel::to(&target).identity(identity.clone()).peer(&peer);
            CatalogServiceClient::new(channel.build().unwrap())
        };
        let timeout = scale.choose(BUSY_TIMEOUT, LIST_TIMEOUT);
        let lasting = connect();
        Self::begin(pause, move || {
            let catalogs = [lasting.clone(), connect()];
            async move {
                for mut catalog in catalogs {
                    let request = ListProductsRequest { page_size: 1, ..Default::default() };
                    let mut request = Request::new(request);
                    request.set_timeout(timeout);
                    catalog.list_products(request).await?;
                }
                Ok(())
            }
        })
    }

    /// Asks the catalog how it is as a probe does, each time over a new connection.
    pub(super) fn probe_catalog(shop: &Shop, scale: Scale, pause: Duration) -> Self {
        let timeout = scale.choose(BUSY_TIMEOUT, PROBE_TIMEOUT);
        let address = format!("http://{}", shop.suite.health_address(Service::Catalog));
        let endpoint = Endpoint::from_shared(address).unwrap().timeout(timeout);
        Self::begin(pause, move || {
            let endpoint = endpoint.clone().connect_timeout(timeout);
            async move {
                let unreachable = |error| Status::from_error(Box::new(error));
                let channel = endpoint.connect().await.map_err(unreachable)?;
                HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
                Ok(())
            }
        })
    }

    fn begin<F>(pause: Duration, call: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send,
    {
        let (leave, mut left) = oneshot::channel();
        let calls = async move {
            let mut served = Served::default();
            while left.try_recv() == Err(TryRecvError::Empty) {
                let begun = Instant::now();
                served.failed.extend(call().await.err());
                served.slowest = served.slowest.max(begun.elapsed());
                served.calls += 1;
                sleep(pause).await;
            }
            served
        };
        Self { leave, calls: tokio::spawn(calls) }
    }

    /// Calls no more.
    pub(super) async fn end(self) -> Served {
        let _ = self.leave.send(());
        self.calls.await.unwrap()
    }
}

impl Served {
    /// Whether every call was answered within its deadline.
    pub(super) fn is_well(&self) -> bool {
        self.calls > 0 && self.failed.is_empty()
    }
}

impl fmt::Display for Served {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, slowest, failed } = self;
        let slowest = slowest.as_millis();
        write!(formatter, "callers served {} of {calls} times", calls - failed.len())?;
        write!(formatter, ", the slowest in {slowest} ms")?;
        failed.first().map_or(Ok(()), |status| write!(formatter, " (first {status:?})"))
    }
}
