//! Keeps the users of the shop, their store credit, and the payments of purchases.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | the variables of this service |
//! | [`user`] | what a user is, and who may see and change it |
//! | [`password`] | how passwords are hashed and verified, a few at once |
//! | [`secret`] | what refresh tokens and API keys are made of |
//! | [`session`], [`api_key`] | what keeps users and their programs signed in: pure functions |
//! | [`signing`] | which keys sign access tokens, and when another is due: pure functions |
//! | [`access`] | how users sign in: what the modules above decide, on a store |
//! | [`ledger`] | where money is, and how it moves: pure functions |
//! | [`payment`] | what a purchase may do to a user's credit: pure functions |
//! | [`error`] | everything that can go wrong, and the status that callers see |
//! | [`store`] | what the domain needs of a database, and each engine that gives it |
//! | [`grpc`] | the RPCs: convert, call, convert |

pub mod access;
pub mod api_key;
pub mod config;
pub mod error;
pub mod grpc;
pub mod ledger;
pub mod password;
pub mod payment;
pub mod secret;
pub mod session;
pub mod signing;
pub mod store;
pub mod user;

use std::{num::NonZeroUsize, process::ExitCode, thread};

use proto::user::v1::{
    account_service_server::AccountServiceServer, auth_service_server::AuthServiceServer,
    user_service_server::UserServiceServer,
};
use service_runtime::{
    Server, Services, StartError, accept_compressed,
    access_token::{SigningKey, TokenKeys},
    sweep,
};

use access::Access;
pub use config::Config;
use password::Passwords;
use store::{Sqlite, Store};

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
    let passwords = Passwords::new(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
    let access = Access::new(
        store,
        passwords,
        server.token_issuer(),
        server.clock().clone(),
        server.identifiers().clone(),
    );
    let service = grpc::Service::new(access.clone());
    let services = Services::default()
        .and(accept_compressed!(UserServiceServer::new(service.clone())))
        .and(accept_compressed!(AuthServiceServer::new(service.clone())))
        .and(accept_compressed!(AccountServiceServer::new(service)));
    let token_keys = TokenKeys::new({
        let access = access.clone();
        move || {
            let access = access.clone();
            Box::pin(async move {
                let keys = access.published_keys().await?;
                Ok(keys.iter().map(SigningKey::public_key).collect())
            })
        }
    });
    let sweep = sweep(server.clock().clone(), async |now| {
        if let Err(error) = access.signing_keys(now).await {
            tracing::warn!(%error, "signing keys could not be looked after; trying again");
        }
        access.store.sweep(now).await
    });
    server.serve(services, token_keys, sweep).await
}
