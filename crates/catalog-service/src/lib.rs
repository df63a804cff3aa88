//! Keeps the products of the shop, their stock, and the goods that purchases hold.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | the variables of this service |
//! | [`product`] | what a product is |
//! | [`filter`] | which products a list holds |
//! | [`stock`] | how much there is, and what a purchase may do to it: pure functions |
//! | [`watch`] | follows the products |
//! | [`error`] | everything that can go wrong, and the status that callers see |
//! | [`store`] | what the domain needs of a database, and each engine that gives it |
//! | [`grpc`] | the RPCs: convert, call, convert |

pub mod config;
pub mod error;
pub mod filter;
pub mod grpc;
pub mod product;
pub mod stock;
pub mod store;
pub mod watch;

use std::process::ExitCode;

use proto::catalog::v1::{
    catalog_service_server::CatalogServiceServer, stock_service_server::StockServiceServer,
};
use service_runtime::{
    Server, Services, StartError, accept_compressed, access_token::TokenKeys, sweep,
};

pub use config::Config;
use store::{Sqlite, Store};

/// The name of the crate, the binary, the image, the Deployment, the Service and
/// the workload.
pub const NAME: &str = "catalog-service";

/// Runs the service as a process of its own.
pub async fn main() -> ExitCode {
    service_runtime::main(NAME, Config::parse, run).await
}

/// Serves until the server has drained.
pub async fn run(config: Config, server: Server) -> Result<(), StartError> {
    let user_service = server.channel(&config.user_service_target, "user-service").build()?;
    let token_keys = TokenKeys::published(user_service);
    let store = Sqlite::open(&config.database_file).await?;
    let clock = server.clock().clone();
    let service = grpc::Service::new(store.clone(), clock.clone(), server.identifiers().clone());
    let services = Services::default()
        .and(accept_compressed!(CatalogServiceServer::new(service.clone())))
        .and(accept_compressed!(StockServiceServer::new(service)));
    let sweep = sweep(clock, async |now| store.sweep(now).await);
    server.serve(services, token_keys, sweep).await
}
