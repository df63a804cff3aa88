//! What a store must do, whichever engine it is on: every test runs against a real
//! database that `books` opens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::future::join_all;
use purchase_service::{
    cart::{Cart, Opening, Refusal},
    error::Error,
    purchase::{Event, FailureReason, Order, Ordered, Purchase, State, Transition},
    store::{Audited, Draft, Purchases, Sqlite, Store, Work},
};
use service_runtime::{Page, RequestKey, Timestamp, sqlite::OpenError};
use tempfile::TempDir;
use uuid::Uuid;

const EARLIER: Timestamp = Timestamp::from_micros(50);
const NOW: Timestamp = Timestamp::from_micros(100);
const LATER: Timestamp = Timestamp::from_micros(103);
const LEASE: Duration = Duration::from_micros(10);
const LEASE_END: Timestamp = Timestamp::from_micros(110);
const USER: Uuid = Uuid::from_u128(1);
const TRACE_PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Everything that may become of a purchase.
const TRANSITIONS: [Transition; 7] = [
    Transition::new(State::Pending, State::Confirmed),
    Transition {
        reason: Some(FailureReason::OutOfStock),
        ..Transition::new(State::Pending, State::Failing)
    },
    Transition::new(State::Pending, State::Cancelling),
    Transition::new(State::Failing, State::Failed),
    Transition::new(State::Cancelling, State::Cancelled),
    Transition::new(State::Confirmed, State::Refunding),
    Transition::new(State::Refunding, State::Refunded),
];

/// An open store, and a clock and identifiers of its own.
struct Books<S> {
    store: S,
    now: Timestamp,
    identifiers: AtomicU32,
    folder: TempDir,
}

/// The engine under test, on a new database.
async fn books() -> Books<impl Store> {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(folder.path().join("purchase.db")).await.unwrap();
    Books { store, now: NOW, identifiers: AtomicU32::new(1_000), folder }
}

impl<S: Store> Books<S> {
    async fn create(&self, request: u128, order: Order) -> Result<Uuid, Error> {
        self.store.create(self.draft(request, order), self.now).await
    }

    fn draft(&self, request: u128, order: Order) -> Draft {
        Draft {
            key: key(request, &format!("{order:?}")),
            id: self.new_id(),
            order,
            not_after: LEASE_END,
            trace_parent: TRACE_PARENT.to_owned(),
        }
    }

    async fn cart(&self, opening: Opening) -> Cart {
        self.store.cart(opening).await.unwrap()
    }

    async fn set(&self, opening: Opening, product: u128, quantity: u32) -> Result<Cart, Error> {
        let item = Ordered { product_id: Uuid::from_u128(product), quantity };
        self.store.set_cart_item(opening, item, self.now).await
    }

    /// Checks out a cart as it is read, under a principal of this name.
    async fn check_out(&self, cart: &Cart, principal: &str) -> Result<Option<Uuid>, Error> {
        let mut draft = self.draft(cart.id.as_u128(), cart.order.clone());
        principal.clone_into(&mut draft.key.principal);
        self.store.check_out(cart.id, cart.version, draft, self.now).await
    }

    /// Whether there may be more to sweep.
    async fn sweep(&self) -> bool {
        self.store.sweep(self.now).await.unwrap()
    }

    /// A new purchase that has come to this state.
    async fn purchase_in(&self, state: State) -> Uuid {
        let request = self.new_id().as_u128();
        let id = self.create(request, order(USER, 2)).await.unwrap();
        let (mut path, mut target) = (Vec::new(), state);
        while let Some(step) = TRANSITIONS.into_iter().find(|step| step.to == target) {
            path.push(step);
            target = step.from;
        }
        for step in path.into_iter().rev() {
            assert!(self.transition(id, step).await);
        }
        id
    }

    async fn get(&self, id: Uuid) -> Purchase {
        self.store.get(id).await.unwrap().unwrap()
    }

    async fn events(&self, id: Uuid, after_version: i64) -> Vec<Event> {
        self.store.events(id, after_version).await.unwrap()
    }

    async fn transition(&self, id: Uuid, transition: Transition) -> bool {
        self.store.transition(id, transition, None, self.now).await.unwrap()
    }

    async fn record_total(&self, id: Uuid, unit_prices: &[i64], total: i64) -> bool {
        self.store.record_total(id, unit_prices.to_vec(), total, self.now).await.unwrap()
    }

    async fn claim(&self) -> Vec<Work> {
        self.store.claim(LEASE, 100, self.now).await.unwrap()
    }

    /// The purchases that a worker gets now.
    async fn claimed(&self) -> Vec<Uuid> {
        self.claim().await.iter().map(|work| work.purchase_id).collect()
    }

    async fn audit(&self) -> Vec<Audited> {
        self.store.audit(Page { size: 1000, after: None }).await.unwrap().rows
    }

    fn new_id(&self) -> Uuid {
        Uuid::from_u128(self.identifiers.fetch_add(1, Ordering::Relaxed).into())
    }
}

/// So many ropes and an anchor.
fn order(user_id: Uuid, ropes: u32) -> Order {
    Order {
        user_id,
        items: vec![
            Ordered { product_id: Uuid::from_u128(12), quantity: ropes },
            Ordered { product_id: Uuid::from_u128(11), quantity: 1 },
        ],
        currency: "EUR".parse().unwrap(),
    }
}

/// The opening of a cart of [`USER`].
fn opening(cart: u128) -> Opening {
    let currency = "EUR".parse().unwrap();
    Opening { cart_id: Uuid::from_u128(cart), user_id: USER, currency }
}

/// The products of a cart and how many pieces of each.
fn held(cart: &Cart) -> Vec<(u128, u32)> {
    cart.order.items.iter().map(|item| (item.product_id.as_u128(), item.quantity)).collect()
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

#[tokio::test]
async fn a_request_that_creates_a_purchase_can_be_repeated_but_not_altered() {
    let books = books().await;
    let id = books.create(1, order(USER, 2)).await.unwrap();
    let event =
        Event { version: 1, state: State::Pending, failure_reason: None, total: None, time: NOW };
    let expected = Purchase {
        id,
        order: order(USER, 2),
        unit_prices: Vec::new(),
        not_after: LEASE_END,
        create_time: NOW,
        last: event,
    };
    assert_eq!(books.get(id).await, expected);
    assert_eq!(books.events(id, 0).await, [event]);
    assert_eq!(books.store.get(Uuid::nil()).await.unwrap(), None);

    let confirm = Transition::new(State::Pending, State::Confirmed);
    assert!(books.transition(id, confirm).await);
    let before = books.audit().await;
    assert_eq!(books.create(1, order(USER, 2)).await.unwrap(), id);
    let altered = books.create(1, order(USER, 3)).await;
    assert!(matches!(altered, Err(Error::RequestIdReused(_))), "{altered:?}");
    assert_eq!(books.audit().await, before);
    assert_ne!(books.create(2, order(USER, 2)).await.unwrap(), id);
}

#[tokio::test]
async fn requests_that_race_under_one_key_make_one_purchase() {
    let books = books().await;
    let repeats = join_all((0..20).map(|_| books.create(1, order(USER, 2)))).await;
    let ids: BTreeSet<_> = repeats.into_iter().map(Result::unwrap).collect();
    assert_eq!((ids.len(), books.audit().await.len()), (1, 1));
}

#[tokio::test]
async fn a_transition_from_any_other_state_changes_nothing_and_is_no_event() {
    let mut books = books().await;
    let mut purchases = Vec::new();
    for state in State::ALL {
        purchases.push((state, books.purchase_in(state).await));
    }
    books.claim().await;
    let before = books.audit().await;
    books.now = LATER;
    for transition in TRANSITIONS {
        for &(state, id) in purchases.iter().filter(|(state, _)| *state != transition.from) {
            let events = books.events(id, 0).await;
            assert!(!books.transition(id, transition).await, "{state:?}: {transition:?}");
            assert_eq!(books.events(id, 0).await, events, "{state:?}: {transition:?}");
        }
    }
    assert!(!books.transition(Uuid::nil(), TRANSITIONS[0]).await);
    assert_eq!((books.audit().await, books.claimed().await), (before, vec![]));
}

#[tokio::test]
async fn a_transition_from_its_own_state_is_won_once_and_is_the_next_event() {
    let mut books = books().await;
    for transition in TRANSITIONS {
        books.now = NOW;
        let id = books.purchase_in(transition.from).await;
        let before = books.get(id).await;
        books.now = LATER;
        let outcomes = join_all([transition; 5].map(|step| books.transition(id, step))).await;
        assert_eq!(outcomes.iter().filter(|won| **won).count(), 1, "{transition:?}");

        let event = Event {
            version: before.last.version + 1,
            state: transition.to,
            failure_reason: transition.reason.or(before.last.failure_reason),
            total: None,
            time: LATER,
        };
        assert_eq!(books.events(id, before.last.version).await, [event], "{transition:?}");
        assert_eq!(books.get(id).await, Purchase { last: event, ..before }, "{transition:?}");
    }
}

#[tokio::test]
async fn rival_transitions_from_one_state_have_one_winner() {
    let books = books().await;
    for _ in 0..5 {
        let id = books.purchase_in(State::Pending).await;
        let rivals = TRANSITIONS.iter().filter(|rival| rival.from == State::Pending);
        let outcomes = join_all(rivals.map(|rival| books.transition(id, *rival))).await;
        assert_eq!(outcomes.iter().filter(|won| **won).count(), 1, "{outcomes:?}");
        assert_eq!(books.events(id, 1).await, [books.get(id).await.last]);
    }
}

#[tokio::test]
async fn a_transition_at_a_stale_version_loses_and_at_the_current_one_wins() {
    let books = books().await;
    let id = books.purchase_in(State::Pending).await;
    assert!(books.record_total(id, &[250, 4000], 4500).await);
    let before = books.audit().await;
    let cancel = Transition::new(State::Pending, State::Cancelling);
    let at = async |version| books.store.transition(id, cancel, Some(version), NOW).await.unwrap();
    assert!(!at(1).await);
    assert!(!at(3).await);
    assert_eq!((books.events(id, 2).await, books.audit().await), (vec![], before));
    assert!(at(2).await);
    assert_eq!(books.get(id).await.last.version, 3);
}

#[tokio::test]
async fn the_reason_of_a_failure_outlives_the_giving_back() {
    let books = books().await;
    for reason in FailureReason::ALL {
        let id = books.purchase_in(State::Pending).await;
        let fail = Transition::new(State::Pending, State::Failing);
        assert!(books.transition(id, Transition { reason: Some(reason), ..fail }).await);
        assert!(books.transition(id, Transition::new(State::Failing, State::Failed)).await);
        let outcome = |event: Event| (event.state, event.failure_reason);
        let events: Vec<_> = books.events(id, 1).await.into_iter().map(outcome).collect();
        assert_eq!(events, [State::Failing, State::Failed].map(|state| (state, Some(reason))));
        assert_eq!(outcome(books.get(id).await.last), (State::Failed, Some(reason)));
    }
}

#[tokio::test]
async fn a_total_is_recorded_once_with_its_prices_and_is_the_next_event() {
    let mut books = books().await;
    let id = books.purchase_in(State::Pending).await;
    books.now = LATER;
    let prices = [[1, 7], [2, 7], [3, 7]];
    let record = |[rope, anchor]: [i64; 2]| {
        let books = &books;
        async move { books.record_total(id, &[rope, anchor], 2 * rope + anchor).await }
    };
    let outcomes = join_all(prices.map(record)).await;
    let won: Vec<_> = prices.iter().zip(outcomes).filter(|(_, won)| *won).collect();
    let [([rope, anchor], _)] = won[..] else { panic!("{won:?}") };

    let event = Event {
        version: 2,
        state: State::Pending,
        failure_reason: None,
        total: Some(2 * rope + anchor),
        time: LATER,
    };
    let purchase = books.get(id).await;
    assert_eq!((purchase.last, purchase.unit_prices), (event, vec![*rope, *anchor]));
    assert_eq!(books.events(id, 1).await, [event]);
    assert!(!record([5, 7]).await);

    assert!(books.transition(id, Transition::new(State::Pending, State::Confirmed)).await);
    let confirmed = books.get(id).await;
    assert_eq!((confirmed.last.total, confirmed.unit_prices), (event.total, vec![*rope, *anchor]));
}

#[tokio::test]
async fn no_total_is_recorded_once_the_purchase_is_decided() {
    let books = books().await;
    for state in State::ALL.into_iter().filter(|state| *state != State::Pending) {
        let id = books.purchase_in(state).await;
        let (before, events) = (books.get(id).await, books.events(id, 0).await);
        assert!(!books.record_total(id, &[250, 4000], 4500).await, "{state:?}");
        assert_eq!((books.get(id).await, books.events(id, 0).await), (before, events));
    }
    assert!(!books.record_total(Uuid::nil(), &[], 0).await);
}

#[tokio::test]
async fn a_new_purchase_is_due_at_once_and_brings_its_trace() {
    let books = books().await;
    let id = books.purchase_in(State::Pending).await;
    let trace_parent = TRACE_PARENT.to_owned();
    let work = Work { purchase_id: id, attempts: 0, lease_end: LEASE_END, trace_parent };
    assert_eq!(books.claim().await, [work]);
}

#[tokio::test]
async fn claims_that_race_share_the_work_and_never_a_purchase() {
    let books = books().await;
    let mut purchases = BTreeSet::new();
    for _ in 0..10 {
        purchases.insert(books.purchase_in(State::Pending).await);
    }
    let claims = join_all((0..8).map(|_| books.store.claim(LEASE, 3, NOW))).await;
    let claims: Vec<_> = claims.into_iter().map(Result::unwrap).collect();
    assert!(claims.iter().all(|claimed| claimed.len() <= 3), "{claims:?}");
    let mut claimed: Vec<_> = claims.into_iter().flatten().map(|work| work.purchase_id).collect();
    claimed.extend(books.claimed().await);
    assert_eq!(claimed.len(), 10);
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), purchases);
}

#[tokio::test]
async fn a_purchase_can_be_claimed_again_once_its_lease_has_ended() {
    let mut books = books().await;
    let id = books.purchase_in(State::Pending).await;
    assert_eq!(books.claimed().await, [id]);
    books.now = Timestamp::from_micros(LEASE_END.as_micros() - 1);
    assert_eq!(books.claimed().await.len(), 0);
    books.now = LEASE_END;
    assert_eq!(books.claimed().await, [id]);
    assert_eq!(books.claimed().await.len(), 0);
}

#[tokio::test]
async fn a_claim_does_not_outlast_a_clock_that_was_set_back() {
    let mut books = books().await;
    let id = books.purchase_in(State::Pending).await;
    assert_eq!(books.claimed().await, [id]);
    books.now = EARLIER;
    assert_eq!(books.claimed().await, [id]);
    assert_eq!(books.claimed().await.len(), 0);
    books.now = EARLIER.saturating_add(LEASE);
    assert_eq!(books.claimed().await, [id]);
}

#[tokio::test]
async fn a_failed_attempt_is_counted_and_postpones_the_next() {
    let mut books = books().await;
    let id = books.purchase_in(State::Pending).await;
    let (before, events) = (books.audit().await, books.events(id, 0).await);
    for attempts in 0..3 {
        let work = books.claim().await.pop().unwrap();
        assert_eq!((work.purchase_id, work.attempts), (id, attempts));
        let due = books.now.saturating_add(LEASE / 2);
        books.store.retry(&work, due).await.unwrap();
        assert_eq!(books.claimed().await.len(), 0);
        books.now = due;
    }
    assert_eq!((books.audit().await, books.events(id, 0).await), (before, events));
}

#[tokio::test]
async fn an_attempt_that_fails_after_its_claim_postpones_nobody() {
    let mut books = books().await;
    let id = books.purchase_in(State::Pending).await;
    let lapsed = books.claim().await.pop().unwrap();
    books.now = LEASE_END;
    let current = books.claim().await.pop().unwrap();
    books.store.retry(&lapsed, LEASE_END).await.unwrap();
    assert_eq!(books.claimed().await.len(), 0, "the claim of another still stands");

    assert!(books.transition(id, Transition::new(State::Pending, State::Cancelling)).await);
    books.store.retry(&current, current.lease_end).await.unwrap();
    let claimed = books.claim().await.pop().unwrap();
    assert_eq!((claimed.purchase_id, claimed.attempts), (id, 0));
}

#[tokio::test]
async fn a_transition_begins_the_count_of_attempts_anew() {
    let mut books = books().await;
    for transition in TRANSITIONS.into_iter().filter(|step| step.from == State::Pending) {
        let id = books.purchase_in(State::Pending).await;
        let work = books.claim().await.into_iter().find(|work| work.purchase_id == id).unwrap();
        books.store.retry(&work, books.now).await.unwrap();
        let work = books.claim().await.into_iter().find(|work| work.purchase_id == id).unwrap();
        assert_eq!(work.attempts, 1);
        assert!(books.transition(id, transition).await);
        books.now = books.now.saturating_add(LEASE);
        let claimed = books.claim().await;
        let claimed = claimed.iter().find(|work| work.purchase_id == id);
        let expected = (!transition.to.is_settled()).then_some(0);
        assert_eq!(claimed.map(|work| work.attempts), expected, "{transition:?}");
    }
}

#[tokio::test]
async fn a_settled_purchase_is_never_claimed() {
    let mut books = books().await;
    let mut unsettled = BTreeSet::new();
    for state in State::ALL {
        let id = books.purchase_in(state).await;
        if !state.is_settled() {
            unsettled.insert(id);
        }
    }
    for now in [NOW, LEASE_END, Timestamp::from_micros(1_000_000), EARLIER] {
        books.now = now;
        assert_eq!(books.claimed().await.into_iter().collect::<BTreeSet<_>>(), unsettled);
    }
}

#[tokio::test]
async fn what_a_request_decides_is_due_at_once_and_what_a_worker_decides_stays_in_hand() {
    let mut books = books().await;
    for transition in TRANSITIONS.into_iter().filter(|transition| !transition.to.is_settled()) {
        books.now = NOW;
        let id = books.purchase_in(transition.from).await;
        books.claim().await;
        books.now = LATER;
        assert!(books.transition(id, transition).await);
        let by_request = matches!(transition.to, State::Cancelling | State::Refunding);
        assert_eq!(books.claimed().await.contains(&id), by_request, "{transition:?}");
    }
}

#[tokio::test]
async fn events_after_a_version_come_in_order() {
    let books = books().await;
    let id = books.purchase_in(State::Pending).await;
    assert!(books.record_total(id, &[250, 4000], 4500).await);
    for transition in [
        Transition::new(State::Pending, State::Confirmed),
        Transition::new(State::Confirmed, State::Refunding),
        Transition::new(State::Refunding, State::Refunded),
    ] {
        assert!(books.transition(id, transition).await);
    }
    books.purchase_in(State::Failed).await;
    for after in 0..=5 {
        let events = books.events(id, after).await;
        let versions: Vec<_> = events.iter().map(|event| event.version).collect();
        assert_eq!(versions, (after + 1..=5).collect::<Vec<_>>());
    }
    let states: Vec<_> = books.events(id, 2).await.iter().map(|event| event.state).collect();
    assert_eq!(states, [State::Confirmed, State::Refunding, State::Refunded]);
}

#[tokio::test]
async fn a_list_holds_the_purchases_of_one_user_by_page() {
    let books = books().await;
    let (ada, grace) = (Uuid::from_u128(0xada), Uuid::from_u128(0x9ace));
    let (mut created, mut seen) = (Vec::new(), Vec::new());
    for request in 0..5 {
        created.push(books.create(request, order(ada, 2)).await.unwrap());
        books.create(10 + request, order(grace, 2)).await.unwrap();
    }
    let mut page = Page { size: 2, after: None };
    loop {
        let list = books.store.list(ada, page).await.unwrap();
        assert!(list.rows.len() <= 2 && list.rows.iter().all(|row| row.order == order(ada, 2)));
        seen.extend(list.rows.iter().map(|purchase| purchase.id));
        page.after = list.next;
        if page.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, created);
    assert_eq!(books.store.list(USER, page).await.unwrap().rows, []);
}

#[tokio::test]
async fn an_audit_pages_through_all_purchases_and_finds_their_events_sound() {
    let books = books().await;
    let (mut expected, mut seen) = (Vec::new(), Vec::new());
    for state in State::ALL {
        expected.push(books.get(books.purchase_in(state).await).await);
    }
    let mut page = Page { size: 3, after: None };
    loop {
        let audit = books.store.audit(page).await.unwrap();
        for Audited { purchase, principal, events_sound, .. } in audit.rows {
            assert_eq!((principal, events_sound), (key(0, "").principal, true), "{purchase:?}");
            seen.push(purchase);
        }
        page.after = audit.next;
        if page.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, expected);
    let id = books.create(7, order(USER, 2)).await.unwrap();
    let audited = books.audit().await.pop().unwrap();
    assert_eq!((audited.purchase.id, audited.request_id), (id, Uuid::from_u128(7)));
}

#[tokio::test]
async fn a_cart_is_recorded_with_its_first_edit_and_keeps_its_goods_in_the_order_they_were_put_in()
{
    let books = books().await;
    assert_eq!(books.cart(opening(7)).await, Cart::new(opening(7)));
    let mut expected = Cart::new(opening(7));
    for (product, quantity) in [(30, 1), (10, 2), (20, 5), (10, 4), (30, 0), (30, 7), (99, 0)] {
        expected.set(Uuid::from_u128(product), quantity).unwrap();
        assert_eq!(books.set(opening(7), product, quantity).await.unwrap(), expected);
        assert_eq!(books.cart(opening(7)).await, expected);
    }
    assert_eq!(held(&expected), [(10, 4), (20, 5), (30, 7)]);
    // What is on record stands, however the cart is opened again.
    let foreign = Opening { user_id: Uuid::from_u128(2), ..opening(7) };
    assert_eq!(books.cart(foreign).await, expected);
    let refused = books.set(foreign, 10, 1).await;
    assert!(matches!(refused, Err(Error::CartRefused(Refusal::Differs(_)))), "{refused:?}");
    assert_eq!(books.cart(opening(7)).await, expected);
    assert_eq!(books.cart(opening(8)).await, Cart::new(opening(8)));
}

#[tokio::test]
async fn edits_that_race_are_all_kept_and_a_full_cart_takes_no_more() {
    let books = books().await;
    let edits = join_all((1..=100).map(|product| books.set(opening(7), product, 2))).await;
    assert!(edits.iter().all(Result::is_ok), "{edits:?}");
    let full = books.cart(opening(7)).await;
    assert_eq!((full.version, full.order.items.len()), (100, 100));
    let refused = books.set(opening(7), 101, 1).await;
    assert!(matches!(refused, Err(Error::CartRefused(Refusal::Full(_)))), "{refused:?}");
    assert_eq!(books.cart(opening(7)).await, full);
}

#[tokio::test]
async fn a_cart_becomes_one_purchase_whoever_checks_out_and_however_often() {
    let mut books = books().await;
    let cart = books.set(opening(7), 10, 2).await.unwrap();
    books.now = LATER;
    let outcomes =
        join_all(["user:1", "user:2", "user:1"].map(|principal| books.check_out(&cart, principal)));
    let outcomes: Vec<_> = outcomes.await.into_iter().map(Result::unwrap).collect();
    let made: Vec<_> = outcomes.iter().flatten().collect();
    let [id] = made[..] else { panic!("{outcomes:?}") };

    let purchase = books.get(*id).await;
    assert_eq!((&purchase.order, purchase.create_time), (&cart.order, LATER));
    assert_eq!(books.events(*id, 0).await, [purchase.last]);
    assert_eq!(books.claimed().await, [*id]);
    let audit = books.audit().await;
    assert_eq!((audit.len(), audit[0].request_id), (1, cart.id));

    let spent = books.cart(opening(7)).await;
    assert_eq!((spent.purchase_id, held(&spent)), (Some(*id), vec![]));
    assert_eq!(books.set(opening(7), 11, 1).await.unwrap(), spent);
    assert_eq!(books.check_out(&spent, "user:1").await.unwrap(), None);
    assert_eq!(books.audit().await, audit);
}

#[tokio::test]
async fn a_cart_that_was_edited_since_it_was_read_is_not_checked_out() {
    let books = books().await;
    let stale = books.set(opening(7), 10, 2).await.unwrap();
    let edited = books.set(opening(7), 11, 1).await.unwrap();
    assert_eq!(books.check_out(&stale, "user:1").await.unwrap(), None);
    assert_eq!((books.cart(opening(7)).await, books.audit().await), (edited.clone(), vec![]));
    assert!(books.check_out(&edited, "user:1").await.unwrap().is_some());
    let unknown = Cart::new(opening(8));
    assert_eq!(books.check_out(&unknown, "user:1").await.unwrap(), None);
}

#[tokio::test]
async fn a_check_out_under_the_key_of_another_request_is_refused_and_leaves_the_cart() {
    let books = books().await;
    books.create(7, order(USER, 2)).await.unwrap();
    let cart = books.set(opening(7), 10, 2).await.unwrap();
    let refused = books.check_out(&cart, &key(7, "").principal).await;
    assert!(matches!(refused, Err(Error::RequestIdReused(_))), "{refused:?}");
    assert_eq!((books.cart(opening(7)).await, books.audit().await.len()), (cart.clone(), 1));
    assert!(books.check_out(&cart, "user:1").await.unwrap().is_some());
}

#[tokio::test]
async fn only_carts_that_nobody_touched_for_thirty_days_are_forgotten() {
    let mut books = books().await;
    let abandoned = books.set(opening(1), 10, 1).await.unwrap();
    let bought = books.set(opening(2), 10, 1).await.unwrap();
    let id = books.check_out(&bought, "user:1").await.unwrap();
    books.set(opening(3), 10, 1).await.unwrap();
    books.now = NOW.saturating_add(Duration::from_hours(30 * 24));
    let kept = books.set(opening(3), 11, 1).await.unwrap();
    assert!(!books.sweep().await);
    assert_eq!(books.cart(opening(1)).await, abandoned);
    books.now = Timestamp::from_micros(books.now.as_micros() + 1);
    assert!(!books.sweep().await);
    assert_eq!(books.cart(opening(1)).await, Cart::new(opening(1)));
    assert_eq!(books.cart(opening(2)).await.purchase_id, id);
    assert_eq!(books.cart(opening(3)).await, kept);
}

#[tokio::test]
async fn more_abandoned_carts_than_one_sweep_forgets_are_forgotten_by_the_next() {
    const CARTS: u128 = 600;
    let mut books = books().await;
    let edits = join_all((1..=CARTS).map(|cart| books.set(opening(cart), 10, 1))).await;
    assert!(edits.iter().all(Result::is_ok));
    books.now = LATER.saturating_add(Duration::from_hours(30 * 24));
    assert!(books.sweep().await, "there is more");
    assert!(!books.sweep().await);
    let left = join_all((1..=CARTS).map(|cart| books.cart(opening(cart)))).await;
    assert!(left.iter().all(|cart| cart.version == 0));
}

#[tokio::test]
async fn a_file_serves_one_process_at_a_time_and_what_the_last_one_claimed_is_due_at_once() {
    let books = books().await;
    let id = books.purchase_in(State::Pending).await;
    books.purchase_in(State::Confirmed).await;
    assert!(books.record_total(id, &[250, 4000], 4500).await);
    assert_eq!(books.claimed().await, [id]);
    let (before, events) = (books.audit().await, books.events(id, 0).await);

    let path = books.folder.path().join("purchase.db");
    let second = Sqlite::open(&path).await.unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");

    let Books { store, now, identifiers, folder } = books;
    drop(store);
    let store = Sqlite::open(&path).await.unwrap();
    let books = Books { store, now, identifiers, folder };
    assert_eq!((books.audit().await, books.events(id, 0).await), (before, events));
    assert_eq!(books.claimed().await, [id]);
}
