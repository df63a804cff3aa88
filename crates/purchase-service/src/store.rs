//! What the domain needs of a database. Every method is one transaction: it holds
//! wholly or not at all, and an answer means that it is on disk.

mod sqlite;

use std::{future::Future, time::Duration};

use service_runtime::{Page, Paged, RequestKey, Timestamp};
use uuid::Uuid;

pub use sqlite::Sqlite;

use crate::{
    cart::{Cart, Opening},
    error::Error,
    purchase::{Event, Order, Ordered, Purchase, Transition},
};

/// All that the service keeps.
pub trait Store: Purchases + Carts + Clone + Send + Sync + 'static {
    /// Forgets what is of no use any more, a bounded number at once, and says whether there
    /// may be more.
    fn sweep(&self, now: Timestamp) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// The purchases and their events.
pub trait Purchases {
    /// Records a purchase as PENDING and due at once. A repeat of the request finds
    /// the first purchase; the identifier of the purchase is answered either way.
    fn create(
        &self,
        draft: Draft,
        now: Timestamp,
    ) -> impl Future<Output = Result<Uuid, Error>> + Send;

    /// The purchase, if there is one.
    fn get(&self, id: Uuid) -> impl Future<Output = Result<Option<Purchase>, Error>> + Send;

    /// Purchases of a user in the order of their creation.
    fn list(
        &self,
        user_id: Uuid,
        page: Page,
    ) -> impl Future<Output = Result<Paged<Purchase>, Error>> + Send;

    /// The changes of a purchase after a version, in order.
    fn events(
        &self,
        id: Uuid,
        after_version: i64,
    ) -> impl Future<Output = Result<Vec<Event>, Error>> + Send;

    /// Writes a state if the purchase is still in the one before it, and has the
    /// version if one is given; with it its event. False if it is not: nothing was
    /// written then.
    fn transition(
        &self,
        id: Uuid,
        transition: Transition,
        version: Option<i64>,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Writes the prices and their total if the purchase is PENDING and has none;
    /// with them its event. False if it is not: nothing was written then.
    fn record_total(
        &self,
        id: Uuid,
        unit_prices: Vec<i64>,
        total: i64,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Takes purchases that are due and not settled, for as long as the lease. It
    /// saves work that two workers would do twice; safety does not rest on it. What is
    /// due later than any lease or back-off lasts is due now: the clock was set back.
    fn claim(
        &self,
        lease: Duration,
        limit: u32,
        now: Timestamp,
    ) -> impl Future<Output = Result<Vec<Work>, Error>> + Send;

    /// Counts a failed attempt and gives the purchase back until it is due, if the
    /// claim still stands: whoever has made it due or claimed it since knows better.
    fn retry(&self, work: &Work, due: Timestamp) -> impl Future<Output = Result<(), Error>> + Send;

    /// Every purchase by identifier, for the check of the invariants.
    fn audit(&self, page: Page) -> impl Future<Output = Result<Paged<Audited>, Error>> + Send;
}

/// The carts that become purchases.
pub trait Carts {
    /// The cart as it is on record. One that is not is new, and is recorded with its first
    /// edit.
    fn cart(&self, opening: Opening) -> impl Future<Output = Result<Cart, Error>> + Send;

    /// [`Cart::set`] on the cart that is on record, or on a new one. One that was checked
    /// out is left alone.
    fn set_cart_item(
        &self,
        opening: Opening,
        item: Ordered,
        now: Timestamp,
    ) -> impl Future<Output = Result<Cart, Error>> + Send;

    /// Makes a purchase of a cart that has this version still and was not checked out:
    /// [`create`](Purchases::create), and the cart is bound to it for ever. None if it is not
    /// so: nothing was written then.
    fn check_out(
        &self,
        cart_id: Uuid,
        version: i64,
        draft: Draft,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Uuid>, Error>> + Send;
}

/// A purchase that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The key of the request.
    pub key: RequestKey,
    /// The identifier, if the request is new.
    pub id: Uuid,
    /// What is ordered.
    pub order: Order,
    /// From when on it fails if it is still pending.
    pub not_after: Timestamp,
    /// The trace of the request, as W3C `traceparent`.
    pub trace_parent: String,
}

/// A purchase that a worker has claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The purchase.
    pub purchase_id: Uuid,
    /// How many attempts have failed.
    pub attempts: u32,
    /// When the claim ends.
    pub lease_end: Timestamp,
    /// The trace of the request that made it, as W3C `traceparent`.
    pub trace_parent: String,
}

/// What the books say of one purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// The purchase.
    pub purchase: Purchase,
    /// Who sent the request.
    pub principal: String,
    /// What the sender called it.
    pub request_id: Uuid,
    /// Whether its events are numbered without a gap and end in its state.
    pub events_sound: bool,
}
