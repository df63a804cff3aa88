//! Sells: drives every purchase through reservation, charge and confirmation,
//! exactly once or not at all.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | the variables of this service |
//! | [`purchase`] | what a purchase is, and what may be decided about it |
//! | [`cart`] | what a user is about to buy, and what it comes to: pure functions |
//! | [`saga`] | what is to be done for a purchase: a pure function |
//! | [`worker`] | does it, and does it again after a crash |
//! | [`changes`] | wakes those who wait for a purchase or a cart |
//! | [`error`] | everything that can go wrong, and the status that callers see |
//! | [`store`] | what the domain needs of a database, and each engine that gives it |
//! | [`grpc`] | the RPCs: convert, call, convert |

pub mod cart;
pub mod changes;
pub mod config;
pub mod error;
pub mod grpc;
pub mod purchase;
pub mod saga;
pub mod store;
pub mod worker;

use std::process::ExitCode;

use client::Balance;
use proto::purchase::v1::purchase_service_server::PurchaseServiceServer;
use service_runtime::{
    Server, Services, StartError, accept_compressed, access_token::TokenKeys, sweep,
};

use changes::Changes;
pub use config::Config;
use store::{Sqlite, Store};
use worker::{Others, Worker};

/// The name of the crate, the binary, the image, the Deployment, the Service and
/// the workload.
pub const NAME: &str = "purchase-service";

/// Runs the service as a process of its own.
pub async fn main() -> ExitCode {
    service_runtime::main(NAME, Config::parse, run).await
}

/// Serves until the server has drained.
pub async fn run(config: Config, server: Server) -> Result<(), StartError> {
    let user_service = server.channel(&config.user_service_target, "user-service").build()?;
    let to_catalog = server.channel(&config.catalog_service_target, "catalog-service");
    // What lasts for hours is spread by number; how fast it began says nothing.
    let watches = to_catalog.clone().balance(Balance::RoundRobin).build()?;
    let catalog_service = to_catalog.build()?;
    let others = Others::new(catalog_service, watches, user_service.clone());
    let store = Sqlite::open(&config.database_file).await?;
    let changes = Changes::default();
    let clock = server.clock().clone();
    let worker = Worker::new(store.clone(), others.clone(), changes.clone(), clock.clone());
    let service = grpc::Service::new(
        store.clone(),
        others,
        worker.nudge(),
        changes,
        clock.clone(),
        server.identifiers().clone(),
        config.purchase_timeout,
    );
    let services = Services::default().and(accept_compressed!(PurchaseServiceServer::new(service)));
    let background = async {
        tokio::select! {
            never = Box::pin(worker.run()) => never,
            never = sweep(clock, async |now| store.sweep(now).await) => never,
        }
    };
    server.serve(services, TokenKeys::published(user_service), background).await
}
