//! What a store must do, whichever engine it is on: every test runs against a real
//! database that `shop` opens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU32, Ordering};

use catalog_service::{
    error::Error,
    product::{Draft, Imported, Label, Product, Sku},
    stock::{Item, Refusal, RequestedItem, Reservation, ReserveRequest, STOCK_LIMIT, State},
    store::{Audit, AuditedReservation, Restock, ShelfLevel, Sqlite, Store},
};
use futures::future::join_all;
use service_runtime::{Money, Page, RequestKey, Timestamp, sqlite::OpenError};
use tempfile::TempDir;
use uuid::Uuid;

const NOT_AFTER: Timestamp = Timestamp::from_micros(100);
const LATE: Timestamp = Timestamp::from_micros(101);
/// When what is late may be forgotten.
const FORGETTABLE: Timestamp = Timestamp::from_micros(LATE.as_micros() + 3_600_000_000);

/// An open store, and a clock and identifiers of its own.
struct Shop<S> {
    store: S,
    now: Timestamp,
    identifiers: AtomicU32,
    folder: TempDir,
}

/// The engine under test, on a new database.
async fn shop() -> Shop<impl Store> {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(folder.path().join("catalog.db")).await.unwrap();
    Shop { store, now: NOT_AFTER, identifiers: AtomicU32::new(1_000), folder }
}

impl<S: Store> Shop<S> {
    async fn create(&self, request: u128, draft: Draft) -> Result<Product, Error> {
        let key = key(request, &format!("{draft:?}"));
        self.store.create(key, self.new_id(), draft, self.now).await
    }

    /// A new product at 2.50 EUR, with so many pieces.
    async fn product_with(&self, pieces: i64) -> Uuid {
        let id = self.new_id();
        let sku = format!("ROPE-{}", id.as_u128());
        self.create(id.as_u128(), draft(&sku, 250, pieces)).await.unwrap().id
    }

    async fn import(&self, drafts: &[Draft]) -> Vec<Imported> {
        let drafts = drafts.iter().map(|draft| (self.new_id(), draft.clone())).collect();
        self.store.import(drafts, self.now).await.unwrap()
    }

    async fn restock(&self, request: u128, id: Uuid, quantity: u32) -> Result<ShelfLevel, Error> {
        let key = key(request, &format!("{id} {quantity}"));
        self.store.restock(Restock { key, product_id: id, quantity }, self.now).await
    }

    async fn reserve(&self, purchase: u128, items: &[(Uuid, u32)]) -> Result<Reservation, Error> {
        let items = items
            .iter()
            .map(|&(product_id, quantity)| RequestedItem { product_id, quantity })
            .collect();
        let request = ReserveRequest {
            purchase_id: Uuid::from_u128(purchase),
            items,
            currency: euros(0).currency,
            not_after: NOT_AFTER,
        };
        self.store.reserve(request, self.now).await
    }

    async fn confirm(&self, purchase: u128) -> Result<Reservation, Error> {
        self.store.confirm(Uuid::from_u128(purchase), self.now).await
    }

    async fn release(&self, purchase: u128) -> Reservation {
        self.store.release(Uuid::from_u128(purchase), NOT_AFTER).await.unwrap()
    }

    async fn available(&self, product_id: Uuid) -> i64 {
        self.store.get(product_id).await.unwrap().unwrap().available
    }

    /// The audit, once it has been seen that the stock is sound.
    async fn audit(&self) -> Audit {
        let audit = self.store.audit(Page { size: 1000, after: None }).await.unwrap();
        assert!(audit.total.is_sound(), "{:?}", audit.total);
        assert_eq!((audit.oversold_product_count, audit.unbalanced_product_count), (0, 0));
        audit
    }

    fn new_id(&self) -> Uuid {
        Uuid::from_u128(self.identifiers.fetch_add(1, Ordering::Relaxed).into())
    }
}

fn draft(sku: &str, price: i64, initial_quantity: i64) -> Draft {
    let label = Label {
        sku: Sku::try_from(sku.to_owned()).unwrap(),
        name: "Rope".to_owned(),
        description: "Three strands of hemp".to_owned(),
        category: "Rope".to_owned(),
        price: euros(price),
    };
    Draft { label, initial_quantity }
}

fn euros(minor_units: i64) -> Money {
    Money { currency: "EUR".parse().unwrap(), minor_units }
}

/// The key of a request with these parameters.
fn key(request: u128, parameters: &str) -> RequestKey {
    let mut fingerprint = [0_u8; 32];
    for (place, byte) in parameters.bytes().enumerate() {
        fingerprint[place % 32] = fingerprint[place % 32].wrapping_mul(31).wrapping_add(byte);
    }
    let principal = "spiffe://chandlery.local/ns/chandlery/sa/chandlery".to_owned();
    RequestKey { principal, request_id: Uuid::from_u128(request), fingerprint }
}

fn states_and_totals(audit: &Audit) -> Vec<(u128, State, i64)> {
    let reservations = audit.reservations.rows.iter().map(|reservation| {
        let AuditedReservation { purchase_id, state, total_minor_units, .. } = reservation;
        (purchase_id.as_u128(), *state, *total_minor_units)
    });
    reservations.collect()
}

#[tokio::test]
async fn a_request_that_creates_a_product_can_be_repeated_but_not_altered() {
    let shop = shop().await;
    let rope = shop.create(1, draft("ROPE", 250, 10)).await.unwrap();
    assert_eq!(shop.create(1, draft("ROPE", 250, 10)).await.unwrap(), rope);
    let altered = shop.create(1, draft("ROPE", 251, 10)).await;
    assert!(matches!(altered, Err(Error::RequestIdReused(_))), "{altered:?}");
    let taken = shop.create(2, draft("ROPE", 250, 10)).await;
    assert!(matches!(taken, Err(Error::SkuTaken)), "{taken:?}");
    assert_eq!(shop.store.get(rope.id).await.unwrap(), Some(rope));
    assert_eq!(shop.store.get(Uuid::nil()).await.unwrap(), None);
}

#[tokio::test]
async fn an_import_can_be_sent_again_and_relabels_without_touching_the_stock() {
    let shop = shop().await;
    let drafts = [draft("ROPE", 250, 10), draft("ANCHOR", 9900, 3)];
    assert_eq!(shop.import(&drafts).await, [Imported::Created, Imported::Created]);
    let first = shop.store.list(Page { size: 10, after: None }).await.unwrap();
    assert_eq!(shop.import(&drafts).await, [Imported::Unchanged, Imported::Unchanged]);
    assert_eq!(shop.store.list(Page { size: 10, after: None }).await.unwrap(), first);

    let dearer = [draft("ROPE", 300, 999), draft("ANCHOR", 9900, 3)];
    assert_eq!(shop.import(&dearer).await, [Imported::Updated, Imported::Unchanged]);
    let rope = shop.store.get(first.rows[0].id).await.unwrap().unwrap();
    assert_eq!((rope.label.price, rope.available), (euros(300), 10));
    assert_ne!(rope.etag(), first.rows[0].etag());
}

#[tokio::test]
async fn a_list_and_an_audit_page_through_all_rows_by_key() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    for _ in 0..4 {
        shop.product_with(0).await;
    }
    for purchase in [3, 1, 5, 2, 4] {
        shop.reserve(purchase, &[(rope, 1)]).await.unwrap();
    }
    let (mut products, mut page) = (Vec::new(), Page { size: 2, after: None });
    loop {
        let list = shop.store.list(page).await.unwrap();
        products.extend(list.rows.iter().map(|product| product.id));
        page.after = list.next;
        if page.after.is_none() {
            break;
        }
    }
    assert!(products.len() == 5 && products.is_sorted(), "{products:?}");
    let mut purchases = Vec::new();
    loop {
        let reservations = shop.store.audit(page).await.unwrap().reservations;
        purchases.extend(reservations.rows.iter().map(|row| row.purchase_id.as_u128()));
        page.after = reservations.next;
        if page.after.is_none() {
            break;
        }
    }
    assert_eq!(purchases, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_restock_adds_once_per_request_and_stays_within_the_limit() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    let first = shop.restock(1, rope, 5).await.unwrap();
    assert_eq!((first.level.available, first.level.restocked), (15, 5));
    shop.restock(2, rope, 1).await.unwrap();
    assert_eq!(shop.restock(1, rope, 5).await.unwrap(), first);
    let altered = shop.restock(1, rope, 6).await;
    assert!(matches!(altered, Err(Error::RequestIdReused(_))), "{altered:?}");
    let nothing = shop.restock(3, Uuid::nil(), 1).await;
    assert!(matches!(nothing, Err(Error::ProductNotFound)), "{nothing:?}");
    let full = shop.product_with(STOCK_LIMIT).await;
    let beyond = shop.restock(3, full, 1).await;
    assert!(matches!(beyond, Err(Error::Refused(Refusal::StockLimit))), "{beyond:?}");
    assert_eq!(shop.available(rope).await, 16);
    shop.audit().await;
}

#[tokio::test]
async fn goods_are_reserved_once_at_locked_prices_and_an_altered_or_late_request_refused() {
    let mut shop = shop().await;
    shop.import(&[draft("ROPE", 250, 10)]).await;
    let rope = shop.store.list(Page { size: 1, after: None }).await.unwrap().rows[0].id;
    let held = shop.reserve(1, &[(rope, 4)]).await.unwrap();
    assert_eq!(held.items, [Item { product_id: rope, quantity: 4, unit_price: euros(250) }]);
    shop.import(&[draft("ROPE", 999, 10)]).await;
    shop.now = LATE;
    assert_eq!(shop.reserve(1, &[(rope, 4)]).await.unwrap(), held);
    let altered = shop.reserve(1, &[(rope, 5)]).await;
    assert!(matches!(altered, Err(Error::Refused(Refusal::ReservationDiffers))), "{altered:?}");
    let late = shop.reserve(2, &[(rope, 1)]).await;
    assert!(matches!(late, Err(Error::Refused(Refusal::TooLate))), "{late:?}");
    assert_eq!(shop.available(rope).await, 6);
    assert_eq!(states_and_totals(&shop.audit().await), [(1, State::Reserved, 0)]);
}

#[tokio::test]
async fn an_audit_survives_goods_whose_price_is_beyond_an_int64() {
    let shop = shop().await;
    let crown = shop.create(1, draft("CROWN", i64::MAX, 10)).await.unwrap().id;
    shop.reserve(1, &[(crown, 1)]).await.unwrap();
    shop.confirm(1).await.unwrap();
    shop.reserve(2, &[(crown, 2)]).await.unwrap();
    let expected = [(1, State::Sold, i64::MAX), (2, State::Reserved, 0)];
    assert_eq!(states_and_totals(&shop.audit().await), expected);
}

#[tokio::test]
async fn a_shortage_holds_nothing_back_at_all() {
    let shop = shop().await;
    let (plenty, scarce) = (shop.product_with(10).await, shop.product_with(1).await);
    let before = shop.audit().await;
    let short = shop.reserve(1, &[(plenty, 5), (scarce, 2)]).await;
    assert!(
        matches!(short, Err(Error::Refused(Refusal::OutOfStock(id))) if id == scarce),
        "{short:?}"
    );
    let unknown = shop.reserve(1, &[(plenty, 5), (Uuid::nil(), 1)]).await;
    assert!(matches!(unknown, Err(Error::Refused(Refusal::ProductNotFound(_)))), "{unknown:?}");
    assert_eq!((shop.available(plenty).await, shop.audit().await), (10, before));
}

#[tokio::test]
async fn purchases_that_race_sell_no_more_than_there_is() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    let outcomes = join_all((0..50).map(|purchase| {
        let shop = &shop;
        async move {
            shop.reserve(purchase, &[(rope, 1)]).await?;
            shop.confirm(purchase).await
        }
    }))
    .await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    assert_eq!((shop.available(rope).await, shop.audit().await.total.sold), (0, 10));
}

#[tokio::test]
async fn goods_are_sold_once_and_come_back_once() {
    let shop = shop().await;
    let (rope, anchor) = (shop.product_with(10).await, shop.product_with(3).await);
    shop.reserve(1, &[(rope, 4), (anchor, 1)]).await.unwrap();
    let sold = shop.confirm(1).await.unwrap();
    assert_eq!(shop.confirm(1).await.unwrap(), sold);
    let audit = shop.audit().await;
    assert_eq!((audit.total.sold, states_and_totals(&audit)), (5, vec![(1, State::Sold, 1250)]));

    let released = shop.release(1).await;
    assert_eq!(released, Reservation { state: State::Released, ..sold });
    assert_eq!(shop.release(1).await, released);
    assert_eq!((shop.available(rope).await, shop.available(anchor).await), (10, 3));
    let again = shop.reserve(1, &[(rope, 4), (anchor, 1)]).await;
    assert!(matches!(again, Err(Error::Refused(Refusal::ReservationReleased))), "{again:?}");
    let confirmed = shop.confirm(1).await;
    assert!(
        matches!(confirmed, Err(Error::Refused(Refusal::ReservationReleased))),
        "{confirmed:?}"
    );
    shop.audit().await;
}

#[tokio::test]
async fn a_release_that_comes_first_bars_the_reservation() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    let mark = shop.release(1).await;
    assert_eq!((mark.state, mark.items.len()), (State::Released, 0));
    let barred = shop.reserve(1, &[(rope, 1)]).await;
    assert!(matches!(barred, Err(Error::Refused(Refusal::ReservationReleased))), "{barred:?}");
    let unknown = shop.confirm(2).await;
    assert!(matches!(unknown, Err(Error::Refused(Refusal::ReservationNotFound))), "{unknown:?}");
    assert_eq!(states_and_totals(&shop.audit().await), [(1, State::Released, 0)]);
}

#[tokio::test]
async fn an_expired_reservation_cannot_be_confirmed_and_its_goods_come_back() {
    let mut shop = shop().await;
    let rope = shop.product_with(10).await;
    shop.reserve(1, &[(rope, 4)]).await.unwrap();
    shop.now = LATE;
    let expired = shop.confirm(1).await;
    assert!(matches!(expired, Err(Error::Refused(Refusal::ReservationExpired))), "{expired:?}");
    shop.store.sweep(LATE).await.unwrap();
    assert_eq!(shop.available(rope).await, 10);
    assert_eq!(states_and_totals(&shop.audit().await), [(1, State::Released, 0)]);
}

#[tokio::test]
async fn a_sweep_forgets_what_is_late_and_released_and_nothing_that_is_sold() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    for purchase in 1..=3 {
        shop.reserve(purchase, &[(rope, 1)]).await.unwrap();
    }
    shop.confirm(1).await.unwrap();
    shop.release(2).await;
    shop.release(4).await;
    let all = shop.audit().await;
    shop.store.sweep(NOT_AFTER).await.unwrap();
    assert_eq!(shop.audit().await, all);
    // What the first sweep releases, the second forgets.
    shop.store.sweep(FORGETTABLE).await.unwrap();
    shop.store.sweep(FORGETTABLE).await.unwrap();
    assert_eq!(states_and_totals(&shop.audit().await), [(1, State::Sold, 250)]);
    assert_eq!(shop.available(rope).await, 9);
}

#[tokio::test]
async fn a_file_serves_one_process_at_a_time_and_keeps_what_was_answered() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    shop.reserve(1, &[(rope, 4)]).await.unwrap();
    let before = shop.audit().await;

    let path = shop.folder.path().join("catalog.db");
    let second = Sqlite::open(&path).await.unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");

    let Shop { store, now, identifiers, folder } = shop;
    drop(store);
    let store = Sqlite::open(&path).await.unwrap();
    let shop = Shop { store, now, identifiers, folder };
    assert_eq!((shop.available(rope).await, shop.audit().await), (6, before));
}
