//! Keeps the users of the shop, their store credit, and the payments of purchases.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | the variables of this service |
//! | [`user`] | what a user is |
//! | [`ledger`] | where money is, and how it moves: pure functions |
//! | [`payment`] | what a purchase may do to a user's credit: pure functions |
//! | [`error`] | everything that can go wrong, and the status that callers see |
//! | [`store`] | what the domain needs of a database, and each engine that gives it |
//! | [`grpc`] | the RPCs: convert, call, convert |

pub mod config;
pub mod error;
pub mod grpc;
pub mod ledger;
pub mod payment;
pub mod store;
pub mod user;

use std::{convert::Infallible, process::ExitCode, time::Duration};

use proto::user::v1::{
    account_service_server::AccountServiceServer, user_service_server::UserServiceServer,
};
use service_runtime::{Clock, Server, Services, StartError, access_token::TokenKeys};

pub use config::Config;
use store::{Sqlite, Store};

/// How often payments are looked through for marks to forget.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The name of the crate, the binary, the image, the Deployment, the Service and
/// the workload.
pub const NAME: &str = "user-service";

/// Runs the service as a process of its own.
pub async fn main() -> ExitCode {
    service_runtime::main(NAME, Config::parse, run).await
}

/// Serves until the server has drained.
pub async fn run(config: Config, server: Server) -> Result<(), StartError> {
    let store = Sqlite::open(&config.database_file).await?;
    let clock = server.clock().clone();
    let service = grpc::Service::new(store.clone(), clock.clone(), server.identifiers().clone());
    let services = Services::default()
        .and(UserServiceServer::new(service.clone()))
        .and(AccountServiceServer::new(service));
    let token_keys = TokenKeys::new(|| Box::pin(async { Ok(Vec::new()) }));
    server.serve(services, token_keys, sweep(store, clock)).await
}

/// Forgets marks that no message can need any more.
async fn sweep(store: impl Store, clock: Clock) -> Infallible {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        if let Err(error) = store.sweep(clock.now()).await {
            tracing::warn!(%error, "payments could not be swept; trying again");
        }
    }
}
