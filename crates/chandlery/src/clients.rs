//! Typed clients of all RPCs of the suite, each over a channel that shows who
//! calls and demands who answers.

use client::{Channel, Identity, SpiffeId};
use proto::{
    catalog::v1::{
        catalog_service_client::CatalogServiceClient, stock_service_client::StockServiceClient,
    },
    purchase::v1::purchase_service_client::PurchaseServiceClient,
    user::v1::{
        account_service_client::AccountServiceClient, auth_service_client::AuthServiceClient,
        user_service_client::UserServiceClient,
    },
};

use crate::service::Service;

/// Where the three services are.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Targets {
    /// Where user-service is, for example static:///127.0.0.1:50051
    #[arg(long, value_name = "TARGET")]
    pub user_service: String,

    /// Where catalog-service is
    #[arg(long, value_name = "TARGET")]
    pub catalog_service: String,

    /// Where purchase-service is
    #[arg(long, value_name = "TARGET")]
    pub purchase_service: String,
}

/// A client of every gRPC service, by what it keeps. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Users.
    pub users: UserServiceClient<Channel>,
    /// Sessions and API keys.
    pub auth: AuthServiceClient<Channel>,
    /// Store credit.
    pub accounts: AccountServiceClient<Channel>,
    /// Products.
    pub catalog: CatalogServiceClient<Channel>,
    /// Stock.
    pub stock: StockServiceClient<Channel>,
    /// Purchases.
    pub purchases: PurchaseServiceClient<Channel>,
}

impl Clients {
    /// Clients that call as `identity`, and begin to connect. Must be called in a tokio
    /// runtime, which the connections belong to.
    pub fn new(targets: &Targets, identity: &Identity) -> Result<Self, client::Error> {
        let Targets { user_service, catalog_service, purchase_service } = targets;
        let users = channel(Service::User, user_service, identity)?;
        let catalog = channel(Service::Catalog, catalog_service, identity)?;
        let purchases = channel(Service::Purchase, purchase_service, identity)?;
        Ok(Self {
            users: UserServiceClient::new(users.clone()),
            auth: AuthServiceClient::new(users.clone()),
            accounts: AccountServiceClient::new(users),
            catalog: CatalogServiceClient::new(catalog.clone()),
            stock: StockServiceClient::new(catalog),
            purchases: PurchaseServiceClient::new(purchases),
        })
    }
}

/// A channel to the service of the trust domain and namespace that `identity` is of.
pub(crate) fn channel(
    service: Service,
    target: &str,
    identity: &Identity,
) -> Result<Channel, client::Error> {
    let own = identity.spiffe_id();
    let peer = SpiffeId::new(own.trust_domain(), own.namespace(), service.name())
        .map_err(|source| client::Error::Peer { target: target.to_owned(), source })?;
    Channel::to(target).identity(identity.clone()).peer(peer.to_string()).build()
}
