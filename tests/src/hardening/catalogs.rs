//! Several catalogs, each on a file of its own with the same products, as callers see
//! replicas of a service over one database.

use std::time::Duration;

use chandlery::{
    certs::{self, NAMESPACE, TRUST_DOMAIN},
    service::Service,
    suite::Replica,
};
use client::{Builder, Channel, Identity};
use futures::{FutureExt, stream};
use proto::catalog::v1::{
    BatchGetProductsRequest, GetProductRequest, ImportProductsRequest, ListProductsRequest,
    Product, catalog_service_client::CatalogServiceClient,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tonic::Request;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Bench, traffic::Call};
use crate::shop::Shop;

/// How long a call may take of which the contract does not say it.
const DEADLINE: Duration = Duration::from_secs(5);

/// How many products each catalog has.
const PRODUCTS: i64 = 40;

/// Catalogs of the same products.
pub(super) struct Catalogs {
    pub(super) shop: Shop,
    pub(super) replicas: Vec<Replica>,
    /// Of the operator, as the services read theirs: again and again.
    pub(super) identity: Identity,
    products: Vec<Product>,
    random: StdRng,
}

impl Catalogs {
    /// Opens so many catalogs, beside that of a shop.
    pub(super) async fn open(bench: &Bench, count: usize) -> Self {
        let mut shop = Shop::open(&bench.program).await;
        let mut products = Vec::new();
        for number in 1..=PRODUCTS {
            products.push(shop.product(number, 1_000).await);
        }
        let original = shop.suite.directory().join(format!("{}.db", Service::Catalog));
        let original = SqliteConnectOptions::new().filename(original);
        let mut database = SqliteConnection::connect_with(&original).await.unwrap();
        let mut replicas = Vec::new();
        for suffix in ('a'..).take(count) {
            let mut replica = shop.suite.replica(Service::Catalog, &suffix.to_string()).unwrap();
            let copy = replica.database_file();
            let copied = sqlx::query("VACUUM INTO ?").bind(copy.to_str());
            copied.execute(&mut database).await.unwrap();
            replica.start().await.unwrap();
            replicas.push(replica);
        }
        let files = certs::identity_files(&shop.suite.certificates(), "chandlery");
        let identity = Identity::load(&files).unwrap();
        Self { shop, replicas, identity, products, random: StdRng::seed_from_u64(bench.seed) }
    }

    /// Where the catalogs are, as a channel takes it.
    pub(super) fn target(&self) -> String {
        let addresses = self.replicas.iter().map(|replica| replica.address().to_string());
        format!("static:///{}", addresses.collect::<Vec<_>>().join(","))
    }

    /// A channel to all catalogs.
    pub(super) fn channel(&self) -> Channel {
        self.to(&self.target()).build().unwrap()
    }

    /// Begins a channel to catalogs that are at this target, as the operator.
    pub(super) fn to(&self, target: &str) -> Builder {
        let peer = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", Service::Catalog);
        Channel::to(target).identity(self.identity.clone()).peer(peer)
    }

    /// Makes up calls of all kinds to all catalogs: mostly reads, and two kinds that may
    /// not be repeated, an import that changes nothing and, since the contract says
    /// nothing of it, a check of the health.
    pub(super) fn calls(&mut self, channel: Channel) -> impl FnMut() -> Call + Send + 'static {
        let mut random = StdRng::from_rng(&mut self.random);
        let products = self.products.clone();
        move || {
            let (catalog, product) =
                (CatalogServiceClient::new(channel.clone()), products.choose(&mut random).unwrap());
            match random.random_range(0..20) {
                0 => import(catalog, product.clone()),
                1..4 => check(channel.clone()),
                4..7 => list(catalog),
                7..10 => batch_get(catalog, &products),
                _ => get(catalog, product.id.clone()),
            }
        }
    }
}

type Catalog = CatalogServiceClient<Channel>;

fn get(mut catalog: Catalog, id: String) -> Call {
    let request = GetProductRequest { id };
    let answer = async move { catalog.get_product(request).await.map(drop) }.boxed();
    Call { rpc: "GetProduct", is_repeatable: true, answer }
}

fn batch_get(mut catalog: Catalog, products: &[Product]) -> Call {
    let ids = products.iter().map(|product| product.id.clone()).collect();
    let request = BatchGetProductsRequest { ids };
    let answer = async move { catalog.batch_get_products(request).await.map(drop) }.boxed();
    Call { rpc: "BatchGetProducts", is_repeatable: true, answer }
}

fn list(mut catalog: Catalog) -> Call {
    let request = ListProductsRequest { page_size: 20, ..ListProductsRequest::default() };
    let answer = async move { catalog.list_products(request).await.map(drop) }.boxed();
    Call { rpc: "ListProducts", is_repeatable: true, answer }
}

fn import(mut catalog: Catalog, product: Product) -> Call {
    let line = ImportProductsRequest { product: Some(product), initial_quantity: 0 };
    let request = stream::iter([line]);
    let answer = async move { catalog.import_products(request).await.map(drop) }.boxed();
    Call { rpc: "ImportProducts", is_repeatable: false, answer }
}

fn check(channel: Channel) -> Call {
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(DEADLINE);
    let answer = async move { HealthClient::new(channel).check(request).await.map(drop) }.boxed();
    Call { rpc: "Check", is_repeatable: false, answer }
}
