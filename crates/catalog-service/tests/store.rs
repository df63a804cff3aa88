//! What a store must do, whichever engine it is on: every test runs against a real
//! database that `shop` opens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use catalog_service::{
    error::Error,
    filter::Filter,
    product::{Changes, Draft, EtagStale, Imported, Label, Product, Sku, Update},
    stock::{Item, Refusal, RequestedItem, Reservation, ReserveRequest, STOCK_LIMIT, State},
    store::{Audit, AuditedReservation, Products, Restock, ShelfLevel, Sqlite, Stock, Store},
    watch::{Position, Watch},
};
use futures::{FutureExt, future::join_all};
use service_runtime::{
    Money, Page, Paged, RequestKey, Timestamp,
    sqlite::{OpenError, REQUEST_RETENTION},
};
use tempfile::TempDir;
use tokio::time::timeout;
use uuid::Uuid;

const NOT_AFTER: Timestamp = Timestamp::from_micros(100);
const LATE: Timestamp = Timestamp::from_micros(101);
/// When what is late may be forgotten.
const FORGETTABLE: Timestamp = Timestamp::from_micros(LATE.as_micros() + 3_600_000_000);

const ALL: Page = Page { size: 1000, after: None };

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

    async fn list(&self, page: Page) -> Paged<Product> {
        self.store.list(&Filter::default(), page).await.unwrap()
    }

    /// The SKUs of the products that meet a filter.
    async fn search(&self, filter: &str) -> Vec<String> {
        let products = self.store.list(&filter.parse().unwrap(), ALL).await.unwrap().rows;
        products.into_iter().map(|product| product.label.sku.as_str().to_owned()).collect()
    }

    async fn update(
        &self,
        request: u128,
        id: Uuid,
        etag: Option<&str>,
        changes: Changes,
    ) -> Result<Product, Error> {
        let key = key(request, &format!("{id} {etag:?} {changes:?}"));
        let update = Update { etag: etag.map(str::to_owned), changes };
        self.store.update(key, id, update, self.now).await
    }

    async fn delete(&self, id: Uuid, etag: Option<&str>) -> Result<Product, Error> {
        self.store.delete(id, etag.map(str::to_owned), self.now).await
    }

    async fn watch(&self, ids: &[Uuid], position: Option<Position>) -> Watch<S> {
        Watch::begin(self.store.clone(), ids.to_vec(), position).await.unwrap()
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
        let audit = self.store.audit(ALL).await.unwrap();
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
    assert!(matches!(taken, Err(Error::SkuTaken(_))), "{taken:?}");
    assert_eq!(shop.store.get(rope.id).await.unwrap(), Some(rope));
    assert_eq!(shop.store.get(Uuid::nil()).await.unwrap(), None);
}

#[tokio::test]
async fn an_update_changes_what_it_names_once_per_request_and_demands_the_etag() {
    let shop = shop().await;
    let rope = shop.create(1, draft("ROPE", 250, 10)).await.unwrap();
    shop.create(2, draft("ANCHOR", 9900, 3)).await.unwrap();
    let dearer = || Changes { price: Some(euros(300)), ..Changes::default() };
    let updated = shop.update(3, rope.id, Some(&rope.etag()), dearer()).await.unwrap();
    let label = Label { price: euros(300), ..rope.label.clone() };
    assert_eq!((&updated.label, updated.available), (&label, 10));
    assert_ne!(updated.etag(), rope.etag());
    assert_eq!(shop.store.get(rope.id).await.unwrap().as_ref(), Some(&updated));

    // The repeat of the request is answered, though its etag is stale by now.
    let repeated = shop.update(3, rope.id, Some(&rope.etag()), dearer()).await;
    assert_eq!(repeated.unwrap(), updated);
    let altered = shop.update(3, rope.id, None, dearer()).await;
    assert!(matches!(altered, Err(Error::RequestIdReused(_))), "{altered:?}");
    let stale = shop.update(4, rope.id, Some(&rope.etag()), dearer()).await;
    assert!(matches!(stale, Err(Error::EtagStale(EtagStale(id))) if id == rope.id), "{stale:?}");
    assert_eq!(shop.update(5, rope.id, None, dearer()).await.unwrap(), updated, "nothing to do");

    let sku = |text: &str| Some(Sku::try_from(text.to_owned()).unwrap());
    let renamed = |text| Changes { sku: sku(text), ..Changes::default() };
    let taken = shop.update(6, rope.id, None, renamed("ANCHOR")).await;
    assert!(matches!(taken, Err(Error::SkuTaken(_))), "{taken:?}");
    let renamed = shop.update(7, rope.id, None, renamed("CORD")).await.unwrap();
    assert_eq!(renamed.label.sku.as_str(), "CORD");
    let nothing = shop.update(8, Uuid::nil(), None, dearer()).await;
    assert!(matches!(nothing, Err(Error::ProductNotFound(_))), "{nothing:?}");
}

#[tokio::test]
async fn a_deleted_product_is_gone_for_readers_and_its_sku_is_free() {
    let shop = shop().await;
    let rope = shop.create(1, draft("ROPE", 250, 10)).await.unwrap();
    let stale = shop.delete(rope.id, Some("\"7\"")).await;
    assert!(matches!(stale, Err(Error::EtagStale(_))), "{stale:?}");
    let deleted = shop.delete(rope.id, Some(&rope.etag())).await.unwrap();
    assert_eq!(deleted.delete_time, Some(shop.now));
    assert_ne!(deleted.etag(), rope.etag());
    assert_eq!(shop.delete(rope.id, Some(&rope.etag())).await.unwrap(), deleted);
    let nothing = shop.delete(Uuid::nil(), None).await;
    assert!(matches!(nothing, Err(Error::ProductNotFound(_))), "{nothing:?}");

    assert_eq!(shop.store.get(rope.id).await.unwrap(), None);
    assert_eq!(shop.store.get_many(&[rope.id]).await.unwrap(), []);
    assert_eq!(shop.list(ALL).await.rows, []);
    assert_eq!(shop.search("sku = ROPE AND category = rope").await, [] as [&str; 0]);
    let update = shop.update(2, rope.id, None, Changes::default()).await;
    assert!(matches!(update, Err(Error::ProductNotFound(_))), "{update:?}");
    let restock = shop.restock(3, rope.id, 1).await;
    assert!(matches!(restock, Err(Error::ProductNotFound(_))), "{restock:?}");
    let reserve = shop.reserve(1, &[(rope.id, 1)]).await;
    assert!(matches!(reserve, Err(Error::Refused(Refusal::ProductNotFound(_)))), "{reserve:?}");

    assert_eq!(shop.import(&[draft("ROPE", 250, 3)]).await, [Imported::Created]);
    let again = shop.list(ALL).await.rows;
    assert!(again.len() == 1 && again[0].id != rope.id, "{again:?}");
    shop.delete(again[0].id, None).await.unwrap();
    shop.create(4, draft("ROPE", 250, 1)).await.unwrap();
    assert_eq!(shop.audit().await.total.available, 14);
}

#[tokio::test]
async fn goods_of_a_deleted_product_that_are_held_can_be_sold_and_given_back() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    for purchase in 1..=3 {
        shop.reserve(purchase, &[(rope, 2)]).await.unwrap();
    }
    shop.delete(rope, None).await.unwrap();
    assert_eq!(shop.confirm(1).await.unwrap().state, State::Sold);
    assert_eq!(shop.release(2).await.state, State::Released);
    assert_eq!(shop.confirm(3).await.unwrap().state, State::Sold);
    assert_eq!(shop.release(3).await.state, State::Released);
    let total = shop.audit().await.total;
    assert_eq!((total.available, total.reserved, total.sold), (8, 0, 2));
}

#[tokio::test]
async fn a_filter_finds_whole_categories_parts_of_names_and_skus_whatever_the_case() {
    let shop = shop().await;
    for (request, sku, name, category) in [
        (1, "OIL-1", "Ölzeug, \"Sturm\"", "Kleidung"),
        (2, "OIL-2", "Lampenöl 100 %", "Öle"),
        (3, "ROPE-1", "Rope_manila", "Rope"),
        (4, "ROPE-2", "ROPE, HEMP", "Ropes"),
    ] {
        let Draft { mut label, .. } = draft(sku, 100, 0);
        label = Label { name: name.to_owned(), category: category.to_owned(), ..label };
        shop.create(request, Draft { label, initial_quantity: 0 }).await.unwrap();
    }
    for (filter, found) in [
        ("", vec!["OIL-1", "OIL-2", "ROPE-1", "ROPE-2"]),
        ("category = rope", vec!["ROPE-1"]),
        (r#"category = "ÖLE""#, vec!["OIL-2"]),
        ("name : rope", vec!["ROPE-1", "ROPE-2"]),
        ("name : ÖL", vec!["OIL-1", "OIL-2"]),
        ("name : ÖL AND name : lamp", vec!["OIL-2"]),
        (r#"name : "_M""#, vec!["ROPE-1"]),
        (r#"name : "%""#, vec!["OIL-2"]),
        (r#"name : "\"sturm\"""#, vec!["OIL-1"]),
        (r#"name : """#, vec!["OIL-1", "OIL-2", "ROPE-1", "ROPE-2"]),
        ("sku = ROPE-2", vec!["ROPE-2"]),
        ("sku = ROPE-2 AND category = rope", vec![]),
        ("category = rope AND category = ropes", vec![]),
    ] {
        assert_eq!(shop.search(filter).await, found, "{filter}");
    }
    let page = Page { size: 1, after: None };
    let first = shop.store.list(&"name : rope".parse().unwrap(), page).await.unwrap();
    let page = Page { after: first.next, ..page };
    let second = shop.store.list(&"name : rope".parse().unwrap(), page).await.unwrap();
    assert_eq!((first.rows.len(), second.rows.len(), second.next), (1, 1, None));
}

#[tokio::test]
async fn many_products_are_read_at_once_and_those_that_are_missing_left_out() {
    let shop = shop().await;
    let (rope, anchor) = (shop.product_with(1).await, shop.product_with(2).await);
    let mut found = shop.store.get_many(&[anchor, Uuid::nil(), rope, anchor]).await.unwrap();
    found.sort_by_key(|product| product.id);
    let levels: Vec<_> = found.iter().map(|product| (product.id, product.available)).collect();
    assert_eq!(levels, [(rope, 1), (anchor, 2)]);
}

/// A product that is changed last, so that a watch that tells of it has told all else.
struct Bell(Uuid);

impl Bell {
    /// What a watch tells before it hears the bell: the product, how much is available,
    /// whether it is deleted.
    async fn told<S: Store>(&self, shop: &Shop<S>, watch: &mut Watch<S>) -> Vec<(Uuid, i64, bool)> {
        let rung = shop.restock(shop.new_id().as_u128(), self.0, 1).await.unwrap().level;
        let mut told = Vec::new();
        loop {
            let next = timeout(Duration::from_secs(30), watch.next()).await;
            let (product, _) = next.unwrap().unwrap();
            let (id, available) = (product.id, product.available);
            if id != self.0 {
                told.push((id, available, product.delete_time.is_some()));
            } else if available == rung.available {
                return told;
            }
        }
    }
}

#[tokio::test]
async fn a_watch_tells_how_products_stand_and_then_whatever_a_reader_can_see() {
    let shop = shop().await;
    let (rope, anchor) = (shop.product_with(10).await, shop.product_with(3).await);
    let gone = shop.product_with(1).await;
    shop.reserve(9, &[(gone, 1)]).await.unwrap();
    shop.delete(gone, None).await.unwrap();
    let bell = Bell(shop.product_with(0).await);
    let mut watch = shop.watch(&[], None).await;
    let told = bell.told(&shop, &mut watch).await;
    assert_eq!(told, [(rope, 10, false), (anchor, 3, false)]);

    shop.reserve(1, &[(rope, 4)]).await.unwrap();
    shop.restock(1, anchor, 1).await.unwrap();
    let told = bell.told(&shop, &mut watch).await;
    assert_eq!(told, [(rope, 6, false), (anchor, 4, false)]);
    // What is sold was not for sale before, and nobody sees goods that went back to a
    // deleted product.
    shop.confirm(1).await.unwrap();
    shop.release(9).await;
    assert_eq!(bell.told(&shop, &mut watch).await, []);

    shop.release(1).await;
    shop.delete(anchor, None).await.unwrap();
    let hawser = shop.create(2, draft("HAWSER", 999, 5)).await.unwrap().id;
    let told = bell.told(&shop, &mut watch).await;
    assert_eq!(told, [(rope, 10, false), (anchor, 4, true), (hawser, 5, false)]);
    shop.import(&[draft("HAWSER", 900, 0)]).await;
    assert_eq!(bell.told(&shop, &mut watch).await, [(hawser, 5, false)]);
    shop.import(&[draft("HAWSER", 900, 0)]).await;
    assert_eq!(bell.told(&shop, &mut watch).await, []);
}

#[tokio::test]
async fn who_looks_late_is_told_the_last_state_of_each_product_once() {
    let shop = shop().await;
    let (rope, anchor) = (shop.product_with(10).await, shop.product_with(3).await);
    let bell = Bell(shop.product_with(0).await);
    let mut watch = shop.watch(&[rope, anchor, bell.0], None).await;
    assert_eq!(bell.told(&shop, &mut watch).await.len(), 2);
    for request in 0..20 {
        shop.restock(request, rope, 1).await.unwrap();
        shop.restock(100 + request, anchor, 1).await.unwrap();
    }
    shop.product_with(7).await;
    let told = bell.told(&shop, &mut watch).await;
    assert_eq!(told, [(rope, 30, false), (anchor, 23, false)]);
}

#[tokio::test]
async fn a_watch_goes_on_after_any_position_without_a_gap_or_a_repeat() {
    let shop = shop().await;
    let bell = Bell(shop.product_with(0).await);
    let mut ids = Vec::new();
    for pieces in 0..150 {
        ids.push(shop.product_with(pieces).await);
    }
    // Deleted before the watch begins, and yet changed after all that it tells of.
    shop.delete(ids[7], None).await.unwrap();
    let (mut seen, mut position) = (Vec::new(), None);
    let mut watch = shop.watch(&[], None).await;
    for _ in 0..150 {
        let (product, next) = watch.next().await.unwrap();
        seen.push(product.id);
        position = Some(next);
        if seen.len() % 40 == 0 {
            watch = shop.watch(&[], position).await;
        }
    }
    ids.remove(7);
    assert_eq!((seen[0], &seen[1..]), (bell.0, ids.as_slice()));
    let mut watch = shop.watch(&[], position).await;
    assert_eq!(bell.told(&shop, &mut watch).await, []);
    shop.restock(1, ids[3], 5).await.unwrap();
    shop.delete(ids[9], None).await.unwrap();
    shop.restock(2, ids[3], 5).await.unwrap();
    let mut watch = shop.watch(&[], position).await;
    let told = bell.told(&shop, &mut watch).await;
    assert_eq!(told, [(ids[9], 10, true), (ids[3], 13, false)]);
}

#[tokio::test]
async fn a_watch_waits_for_the_commit_and_is_woken_by_it() {
    let shop = shop().await;
    let rope = shop.product_with(10).await;
    let mut watch = shop.watch(&[rope], None).await;
    watch.next().await.unwrap();
    let mut next = Box::pin(watch.next());
    assert!((&mut next).now_or_never().is_none());
    shop.restock(1, rope, 1).await.unwrap();
    let (product, _) = timeout(Duration::from_secs(30), next).await.unwrap().unwrap();
    assert_eq!(product.available, 11);
}

#[tokio::test]
async fn a_change_has_a_number_of_its_own_and_means_nothing_in_another_database() {
    let shop = shop().await;
    assert_eq!(shop.store.last_change().await.unwrap(), 0);
    let rope = shop.product_with(10).await;
    assert_eq!(shop.store.last_change().await.unwrap(), 1);
    shop.reserve(1, &[(rope, 4)]).await.unwrap();
    assert_eq!(shop.store.last_change().await.unwrap(), 2);
    shop.confirm(1).await.unwrap();
    assert_eq!(shop.store.last_change().await.unwrap(), 2, "nobody can see it");
    assert_ne!(shop.store.identity(), self::shop().await.store.identity());
}

#[tokio::test]
async fn an_import_can_be_sent_again_and_relabels_without_touching_the_stock() {
    let shop = shop().await;
    let drafts = [draft("ROPE", 250, 10), draft("ANCHOR", 9900, 3)];
    assert_eq!(shop.import(&drafts).await, [Imported::Created, Imported::Created]);
    let first = shop.list(ALL).await;
    assert_eq!(shop.import(&drafts).await, [Imported::Unchanged, Imported::Unchanged]);
    assert_eq!(shop.list(ALL).await, first);

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
        let list = shop.list(page).await;
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
    assert!(matches!(nothing, Err(Error::ProductNotFound(_))), "{nothing:?}");
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
    let rope = shop.list(ALL).await.rows[0].id;
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
async fn a_sweep_that_leaves_something_says_so() {
    let shop = shop().await;
    join_all((0..501).map(|purchase| shop.release(purchase))).await;
    let more = join_all((0..2).map(|_| shop.store.sweep(FORGETTABLE))).await;
    assert!(matches!(more.as_slice(), [Ok(true), Ok(false)]), "{more:?}");
    assert_eq!(shop.audit().await.reservations.rows, []);
}

#[tokio::test]
async fn a_request_is_remembered_for_as_long_as_anybody_may_repeat_it() {
    let mut shop = shop().await;
    let rope = shop.product_with(10).await;
    shop.restock(1, rope, 5).await.unwrap();
    shop.now = shop.now.saturating_add(REQUEST_RETENTION);
    shop.store.sweep(shop.now).await.unwrap();
    shop.restock(1, rope, 5).await.unwrap();
    assert_eq!(shop.available(rope).await, 15);
    shop.now = shop.now.saturating_add(Duration::from_micros(1));
    shop.store.sweep(shop.now).await.unwrap();
    shop.restock(1, rope, 5).await.unwrap();
    assert_eq!(shop.available(rope).await, 20);
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
    let identity = store.identity();
    drop(store);
    let store = Sqlite::open(&path).await.unwrap();
    assert_eq!(store.identity(), identity);
    let shop = Shop { store, now, identifiers, folder };
    assert_eq!((shop.available(rope).await, shop.audit().await), (6, before));
}
