//! What a caller's channel makes of a target: which endpoints it finds, which of them it
//! can call, and why not the others.

use std::time::Duration;

use client::{EndpointState, Snapshot};
use tokio::time::{Instant, sleep};

use crate::{
    caller::{self, Caller},
    clients,
    service::Service,
};

/// How long endpoints are waited for: longer than one may take to be found and to be
/// connected to.
const PATIENCE: Duration = Duration::from_secs(10);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

const DETAILS: &str = "\
Examples:
  chandlery channel                         every service that `chandlery dev` keeps running
  chandlery channel --service catalog-service dns:///localhost:50051 --certs certs
  chandlery channel --service user-service static:///127.0.0.1:50051,127.0.0.1:50052

Exit status:
  0 every service can be called at one endpoint at least; 64 wrong usage, or a certificate
  that cannot be used; 69 a service cannot be called.";

/// Shows what a channel to a service finds: its endpoints, and which can be called
///
/// Connects as a service would, over mutual TLS, and calls nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub struct Args {
    /// Where the service is: static:///host:port[,host:port]..., dns:///host:port or
    /// unix:///path; else as endpoints.json says
    #[arg(value_name = "TARGET", requires = "service")]
    target: Option<String>,

    /// The service that is expected there
    #[arg(long, value_name = "SERVICE")]
    service: Option<Service>,

    #[command(flatten)]
    caller: Caller,
}

/// Why a channel could not be shown, or not be used.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody can call.
    #[error(transparent)]
    Caller(#[from] caller::Error),
    /// The target cannot be used.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A service has no endpoint that can be called.
    #[error("{0} cannot be called at any endpoint; the table says why")]
    Uncallable(Service),
}

/// Prints the state of the channel to each service that is asked about.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let Args { target, service, caller } = args;
    let identity = caller.identity()?;
    let services = service.map_or(Service::ALL.to_vec(), |service| vec![service]);
    let mut uncallable = None;
    for (index, service) in services.into_iter().enumerate() {
        let target = match target {
            Some(target) => target.clone(),
            None => format!("static:///{}", caller.endpoints()?.of(service).grpc),
        };
        let channel = clients::channel(service, &target, &identity)?;
        let end = Instant::now() + PATIENCE;
        let mut snapshot = channel.snapshot();
        while !is_settled(&snapshot) && Instant::now() < end {
            sleep(POLL_INTERVAL).await;
            snapshot = channel.snapshot();
        }
        if index > 0 {
            println!();
        }
        println!("{snapshot}");
        if snapshot.endpoints.iter().all(|endpoint| endpoint.state != EndpointState::Ready) {
            uncallable.get_or_insert(service);
        }
    }
    uncallable.map_or(Ok(()), |service| Err(Failure::Uncallable(service)))
}

/// Whether it is known what became of every endpoint.
fn is_settled(snapshot: &Snapshot) -> bool {
    let is_known = !snapshot.endpoints.is_empty() || snapshot.discovery_error.is_some();
    is_known && snapshot.endpoints.iter().all(|it| it.state != EndpointState::Connecting)
}
