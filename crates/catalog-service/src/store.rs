//! What the domain needs of a database. Every method is one transaction: it holds
//! wholly or not at all, and an answer means that it is on disk.

mod sqlite;

use std::future::Future;

use service_runtime::{Page, Paged, RequestKey, Timestamp};
use tokio::sync::watch;
use uuid::Uuid;

pub use sqlite::Sqlite;

use crate::{
    error::Error,
    filter::Filter,
    product::{Draft, Imported, Product, Update},
    stock::{Level, Reservation, ReserveRequest, State},
    watch::{Change, Position},
};

/// All that the service keeps.
pub trait Store: Products + Stock + Clone + Send + Sync + 'static {
    /// Expires what is held too long and forgets what is of no use any more, a bounded
    /// number at once, and says whether there may be more.
    fn sweep(&self, now: Timestamp) -> impl Future<Output = Result<bool, Error>> + Send;

    /// What tells this database from every other: the number of a change means nothing in
    /// another.
    fn identity(&self) -> Uuid;
}

/// The products.
pub trait Products {
    /// Puts a product on the shelf under a new identifier. A repeat of the request
    /// gets the first answer.
    fn create(
        &self,
        key: RequestKey,
        id: Uuid,
        draft: Draft,
        now: Timestamp,
    ) -> impl Future<Output = Result<Product, Error>> + Send;

    /// Creates or relabels products by SKU, each under the identifier beside it if it
    /// is new.
    fn import(
        &self,
        drafts: Vec<(Uuid, Draft)>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Vec<Imported>, Error>> + Send;

    /// The product, if there is one that is not deleted.
    fn get(&self, id: Uuid) -> impl Future<Output = Result<Option<Product>, Error>> + Send;

    /// Those of these products that there are, in any order, all of one moment.
    fn get_many(&self, ids: &[Uuid]) -> impl Future<Output = Result<Vec<Product>, Error>> + Send;

    /// Products in the order of their creation.
    fn list(
        &self,
        filter: &Filter,
        page: Page,
    ) -> impl Future<Output = Result<Paged<Product>, Error>> + Send;

    /// [`Product::update`] on what is on record. A repeat of the request gets the first
    /// answer.
    fn update(
        &self,
        key: RequestKey,
        id: Uuid,
        update: Update,
        now: Timestamp,
    ) -> impl Future<Output = Result<Product, Error>> + Send;

    /// [`Product::delete`] on what is on record. The SKU can be used again.
    fn delete(
        &self,
        id: Uuid,
        etag: Option<String>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Product, Error>> + Send;

    /// The products, of these or of all if none are named, that have changed since a
    /// position, deleted ones included, by their last change.
    fn changes(
        &self,
        ids: &[Uuid],
        since: Position,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Change>, Error>> + Send;

    /// The number of the last change of any product; zero if there was none. However many
    /// ask, it is looked up once after a commit.
    fn last_change(&self) -> impl Future<Output = Result<i64, Error>> + Send;

    /// Wakes after commits. To miss none, subscribe first and read then.
    fn commits(&self) -> watch::Receiver<()>;
}

/// The stock and the reservations. Goods of a product that is deleted are held for
/// nobody any more, but those that are held can be sold and given back.
pub trait Stock {
    /// Adds pieces of a product. A repeat of the request gets the first answer.
    fn restock(
        &self,
        restock: Restock,
        now: Timestamp,
    ) -> impl Future<Output = Result<ShelfLevel, Error>> + Send;

    /// [`stock::reserve`](crate::stock::reserve) on what is on record.
    fn reserve(
        &self,
        request: ReserveRequest,
        now: Timestamp,
    ) -> impl Future<Output = Result<Reservation, Error>> + Send;

    /// [`stock::confirm`](crate::stock::confirm) on what is on record.
    fn confirm(
        &self,
        purchase_id: Uuid,
        now: Timestamp,
    ) -> impl Future<Output = Result<Reservation, Error>> + Send;

    /// [`stock::release`](crate::stock::release) on what is on record.
    fn release(
        &self,
        purchase_id: Uuid,
        not_after: Timestamp,
    ) -> impl Future<Output = Result<Reservation, Error>> + Send;

    /// The sums of the stock and a page of reservations by purchase.
    fn audit(&self, page: Page) -> impl Future<Output = Result<Audit, Error>> + Send;
}

/// Pieces to add to a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restock {
    /// The key of the request.
    pub key: RequestKey,
    /// The product.
    pub product_id: Uuid,
    /// How many pieces.
    pub quantity: u32,
}

/// How much there is of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ShelfLevel {
    /// The product.
    pub product_id: Uuid,
    /// How much there is.
    pub level: Level,
}

/// What an operator needs to check the stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// How many products there are.
    pub product_count: i64,
    /// The sums over all products.
    pub total: Level,
    /// Products with fewer than no pieces available.
    pub oversold_product_count: i64,
    /// Products whose quantities do not add up, or differ from the reservations.
    pub unbalanced_product_count: i64,
    /// The reservations of the page.
    pub reservations: Paged<AuditedReservation>,
}

/// The goods of one purchase in sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedReservation {
    /// The purchase.
    pub purchase_id: Uuid,
    /// What became of the goods.
    pub state: State,
    /// Their price if they are sold, in minor units; else zero.
    pub total_minor_units: i64,
    /// The currency; empty if nothing was ever reserved.
    pub currency_code: String,
}
