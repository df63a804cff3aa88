//! What the catalog says of the goods of a cart. Its watch only wakes: what is shown is
//! read anew, all of one moment.

use std::{collections::BTreeSet, mem, sync::Arc, time::Duration};

use client::Channel;
use proto::catalog::v1::{
    BatchGetProductsRequest, Product, WatchProductsRequest,
    catalog_service_client::CatalogServiceClient,
};
use service_runtime::{Money, reason};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Request, Status};
use tonic_types::StatusExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    cart::{Cart, Good, Goods},
    error::Error,
    worker::{Others, back_off},
};

/// How long a shopper waits for the catalog before he is shown what was last known.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long goods that were just read are good enough, however often they change.
const REST: Duration = Duration::from_millis(100);
/// The goods of one cart.
pub(super) struct Shelf {
    catalog: CatalogServiceClient<Channel>,
    watches: CatalogServiceClient<Channel>,
    /// What is last known of them.
    pub(super) goods: Goods,
    watched: BTreeSet<Uuid>,
    /// Reads the watch however slow the shopper is, since what is left unread would hold
    /// back the watches of others on the same connection. It ends with the shelf.
    watch: JoinSet<()>,
    wake: Arc<Notify>,
    last_read: Instant,
    /// How often the goods could not be read since they last were.
    failures: u32,
    /// Tells carts apart whose catalog goes away at the same time.
    spread: Uuid,
}

impl Shelf {
    pub(super) fn new(others: &Others, cart_id: Uuid) -> Self {
        Self {
            catalog: others.catalog.clone(),
            watches: others.watches.clone(),
            goods: Goods::new(),
            watched: BTreeSet::new(),
            watch: JoinSet::new(),
            wake: Arc::default(),
            last_read: Instant::now(),
            failures: 0,
            spread: cart_id,
        }
    }

    /// Reads the goods of a cart and watches them from then on. If the catalog is away,
    /// what was last known stays.
    pub(super) async fn read(&mut self, cart: &Cart) -> Result<(), Error> {
        let ids = cart.product_ids();
        self.watch(&ids);
        self.goods.retain(|id, _| ids.contains(id));
        let read = self.ask(ids).await;
        self.last_read = Instant::now();
        self.failures = if read.is_ok() { 0 } else { self.failures + 1 };
        read.map_err(|status| {
            tracing::info!(code = ?status.code(), message = status.message(), "no catalog");
            Error::CatalogAway
        })
    }

    async fn ask(&mut self, mut ids: Vec<Uuid>) -> Result<(), Status> {
        // What does not exist never will: identifiers are not used again.
        ids.retain(|id| self.goods.get(id) != Some(&None));
        if ids.is_empty() {
            return Ok(());
        }
        let products = match self.batch_get(&ids).await {
            Err(status) => {
                let absent = absent(&status).ok_or(status)?;
                ids.retain(|id| !absent.contains(id));
                self.goods.extend(absent.into_iter().map(|id| (id, None)));
                if ids.is_empty() {
                    return Ok(());
                }
                self.batch_get(&ids).await?
            }
            Ok(products) => products,
        };
        self.goods.extend(products.into_iter().filter_map(good));
        Ok(())
    }

    async fn batch_get(&mut self, ids: &[Uuid]) -> Result<Vec<Product>, Status> {
        let ids = ids.iter().map(Uuid::to_string).collect();
        let mut request = Request::new(BatchGetProductsRequest { ids });
        request.set_timeout(PATIENCE);
        Ok(self.catalog.batch_get_products(request).await?.into_inner().products)
    }

    /// Waits until one of the goods may have changed, or may be had again.
    pub(super) async fn changed(&self) {
        sleep_until(self.last_read + REST).await;
        let retry = self.last_read + back_off(self.spread, self.failures);
        tokio::select! {
            () = self.wake.notified() => {}
            () = sleep_until(retry), if self.failures > 0 => {}
        }
    }

    fn watch(&mut self, ids: &[Uuid]) {
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        if ids == self.watched {
            return;
        }
        self.watch = JoinSet::new();
        // To name no product is to follow them all.
        if !ids.is_empty() {
            let watch = Watch {
                catalog: self.watches.clone(),
                ids: ids.iter().map(Uuid::to_string).collect(),
                spread: self.spread,
                wake: Arc::clone(&self.wake),
            };
            self.watch.spawn(watch.run().in_current_span());
        }
        self.watched = ids;
    }
}

/// A watch of products, taken up again whenever it breaks.
struct Watch {
    catalog: CatalogServiceClient<Channel>,
    ids: Vec<String>,
    spread: Uuid,
    wake: Arc<Notify>,
}

impl Watch {
    async fn run(mut self) {
        let (mut resume_token, mut failures) = (String::new(), 0);
        loop {
            let request = WatchProductsRequest {
                ids: self.ids.clone(),
                // One that is refused is not sent twice: the watch begins anew.
                resume_token: mem::take(&mut resume_token),
            };
            // It may have to wait for another cart's to end, if there are very many.
            let watching = timeout(PATIENCE, self.catalog.watch_products(request)).await;
            // In vain or not, it is time to look: the goods of a cart without a watch are
            // read as often as one is asked for.
            self.wake.notify_one();
            if let Ok(Ok(changes)) = watching {
                let mut changes = changes.into_inner();
                while let Ok(Some(change)) = changes.message().await {
                    (resume_token, failures) = (change.resume_token, 0);
                    self.wake.notify_one();
                }
            }
            sleep(back_off(self.spread, failures)).await;
            failures += 1;
        }
    }
}

/// The products that a batch has failed for.
fn absent(status: &Status) -> Option<Vec<Uuid>> {
    if reason(status)? != "PRODUCT_NOT_FOUND" {
        return None;
    }
    let info = status.get_details_error_info()?;
    let ids: Option<Vec<Uuid>> =
        info.metadata.get("product_ids")?.split(',').map(|id| id.parse().ok()).collect();
    ids.filter(|ids| !ids.is_empty())
}

fn good(product: Product) -> Option<(Uuid, Option<Good>)> {
    let id = product.id.parse().ok()?;
    if product.delete_time.is_some() {
        return Some((id, None));
    }
    let price = product.price?;
    let price =
        Money { currency: price.currency_code.parse().ok()?, minor_units: price.minor_units };
    Some((id, Some(Good { name: product.name, price, available: product.available_quantity })))
}
