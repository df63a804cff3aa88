//! What a store must do, whichever engine it is on: every test runs against a real
//! database that `bank` opens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::join_all;
use service_runtime::{Money, Page, RequestKey, Timestamp, sqlite::OpenError};
use tempfile::TempDir;
use user_service::{
    error::Error,
    ledger::BalanceLimit,
    payment::{ChargeRequest, Paid, Payment, Refusal, State},
    store::{Audit, AuditedPayment, Balance, Deposit, Refund, Sqlite, Store, Sum},
    user::{Email, Profile, User},
};
use uuid::Uuid;

const NOT_AFTER: Timestamp = Timestamp::from_micros(100);
const LATE: Timestamp = Timestamp::from_micros(101);
/// When what is late may be forgotten.
const FORGETTABLE: Timestamp = Timestamp::from_micros(LATE.as_micros() + 3_600_000_000);

/// An open store, and a clock and identifiers of its own.
struct Bank<S> {
    store: S,
    now: Timestamp,
    identifiers: AtomicU32,
    folder: TempDir,
}

/// The engine under test, on a new database.
async fn bank() -> Bank<impl Store> {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(folder.path().join("user.db")).await.unwrap();
    Bank { store, now: NOT_AFTER, identifiers: AtomicU32::new(1_000), folder }
}

impl<S: Store> Bank<S> {
    async fn create(&self, request: u128, email: &str) -> Result<User, Error> {
        let email = Email::try_from(email.to_owned()).unwrap();
        let key = key(request, email.as_str());
        let profile = Profile { email, display_name: "Ada".to_owned() };
        self.store.create(key, self.new_id(), profile, self.now).await
    }

    /// A new user with so many cents.
    async fn user_with(&self, minor_units: i64) -> Uuid {
        let id = self.new_id();
        let user = self.create(id.as_u128(), &format!("{id}@example.com")).await.unwrap();
        if minor_units > 0 {
            self.deposit(id.as_u128() + (1 << 64), user.id, minor_units).await.unwrap();
        }
        user.id
    }

    async fn deposit(&self, request: u128, user_id: Uuid, cents: i64) -> Result<Balance, Error> {
        let key = key(request, &format!("{user_id} {cents}"));
        let deposit = Deposit { key, user_id, amount: euros(cents) };
        self.store.deposit(deposit, self.new_id(), self.now).await
    }

    async fn charge(&self, purchase: u128, user_id: Uuid, cents: i64) -> Result<Payment, Error> {
        let request = ChargeRequest {
            purchase_id: Uuid::from_u128(purchase),
            paid: Paid { user_id, amount: euros(cents) },
            not_after: NOT_AFTER,
        };
        self.store.charge(request, self.new_id(), self.now).await
    }

    async fn refund(&self, purchase: u128) -> Payment {
        let refund = Refund { purchase_id: Uuid::from_u128(purchase), not_after: NOT_AFTER };
        self.store.refund(refund, self.new_id(), self.now).await.unwrap()
    }

    async fn credit(&self, user_id: Uuid) -> i64 {
        let balance = self.store.balance(user_id, euros(0).currency).await.unwrap();
        balance.amount.minor_units
    }

    /// The audit, once it has been seen that the ledger is sound.
    async fn audit(&self) -> Audit {
        let audit = self.store.audit(Page { size: 1000, after: None }).await.unwrap();
        assert_eq!(audit.unsound_account_count, 0);
        for Sum { postings, balances, deposited, captured, .. } in &audit.sums {
            assert_eq!((*postings, balances + captured), (0, *deposited));
        }
        audit
    }

    fn new_id(&self) -> Uuid {
        Uuid::from_u128(self.identifiers.fetch_add(1, Ordering::Relaxed).into())
    }
}

fn euros(minor_units: i64) -> Money {
    Money { currency: "EUR".parse().unwrap(), minor_units }
}

/// The key of a request with these parameters.
fn key(request: u128, parameters: &str) -> RequestKey {
    let mut fingerprint = [0; 32];
    for (place, byte) in parameters.bytes().enumerate() {
        fingerprint[place % 32] ^= byte;
    }
    let principal = "spiffe://chandlery.local/ns/chandlery/sa/chandlery".to_owned();
    RequestKey { principal, request_id: Uuid::from_u128(request), fingerprint }
}

fn captured_and_refunded(audit: &Audit) -> Vec<(u128, i64, i64)> {
    let payments = audit.payments.rows.iter().map(|payment| {
        let AuditedPayment { purchase_id, captured_minor_units, refunded_minor_units, .. } =
            payment;
        (purchase_id.as_u128(), *captured_minor_units, *refunded_minor_units)
    });
    payments.collect()
}

#[tokio::test]
async fn a_request_that_creates_a_user_can_be_repeated_but_not_altered() {
    let bank = bank().await;
    let ada = bank.create(1, "ada@example.com").await.unwrap();
    assert_eq!(bank.create(1, "ada@example.com").await.unwrap(), ada);
    let altered = bank.create(1, "grace@example.com").await;
    assert!(matches!(altered, Err(Error::RequestIdReused(_))), "{altered:?}");
    assert_eq!(bank.store.get(ada.id).await.unwrap(), Some(ada));
    assert_eq!(bank.store.get(Uuid::nil()).await.unwrap(), None);
}

#[tokio::test]
async fn an_address_is_taken_in_any_case_and_kept_as_it_was_written() {
    let bank = bank().await;
    let ada = bank.create(1, "Ada@Example.com").await.unwrap();
    assert_eq!(ada.profile.email.as_str(), "Ada@Example.com");
    let second = bank.create(2, "aDA@example.COM").await;
    assert!(matches!(second, Err(Error::EmailTaken)), "{second:?}");
    bank.create(2, "grace@example.com").await.unwrap();
}

#[tokio::test]
async fn deposits_come_from_the_till_once_per_request() {
    let bank = bank().await;
    let ada = bank.user_with(0).await;
    assert_eq!(bank.credit(ada).await, 0);
    let first = bank.deposit(1, ada, 70).await.unwrap();
    assert_eq!(first, Balance { user_id: ada, amount: euros(70) });
    bank.deposit(2, ada, 30).await.unwrap();
    assert_eq!(bank.deposit(1, ada, 70).await.unwrap(), first);
    let altered = bank.deposit(1, ada, 71).await;
    assert!(matches!(altered, Err(Error::RequestIdReused(_))), "{altered:?}");
    assert_eq!(bank.credit(ada).await, 100);
    let sum = Sum {
        currency: euros(0).currency,
        postings: 0,
        balances: 100,
        deposited: 100,
        captured: 0,
    };
    assert_eq!(bank.audit().await.sums, [sum]);
}

#[tokio::test]
async fn a_deposit_beyond_the_range_or_to_nobody_is_refused_and_changes_nothing() {
    let bank = bank().await;
    let (ada, grace) = (bank.user_with(i64::MAX).await, bank.user_with(0).await);
    for user in [ada, grace] {
        let beyond = bank.deposit(1, user, 1).await;
        assert!(matches!(beyond, Err(Error::BalanceLimit(BalanceLimit))), "{beyond:?}");
    }
    let nobody = bank.deposit(1, Uuid::nil(), 1).await;
    assert!(matches!(nobody, Err(Error::UserNotFound)), "{nobody:?}");
    bank.charge(1, ada, i64::MAX).await.unwrap();
    bank.refund(1).await;
    assert_eq!((bank.credit(ada).await, bank.credit(grace).await), (i64::MAX, 0));
    bank.audit().await;
}

#[tokio::test]
async fn a_charge_is_taken_once_and_an_altered_or_late_one_refused() {
    let mut bank = bank().await;
    let ada = bank.user_with(100).await;
    let paid = bank.charge(1, ada, 60).await.unwrap();
    bank.now = LATE;
    assert_eq!(bank.charge(1, ada, 60).await.unwrap(), paid);
    let altered = bank.charge(1, ada, 61).await;
    assert!(matches!(altered, Err(Error::Refused(Refusal::PaymentDiffers))), "{altered:?}");
    let late = bank.charge(2, ada, 1).await;
    assert!(matches!(late, Err(Error::Refused(Refusal::TooLate))), "{late:?}");
    assert_eq!(bank.credit(ada).await, 40);
    assert_eq!(captured_and_refunded(&bank.audit().await), [(1, 60, 0)]);
}

#[tokio::test]
async fn an_overdraft_is_refused_and_changes_nothing() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    let before = bank.audit().await;
    let overdraft = bank.charge(1, ada, 101).await;
    assert!(matches!(overdraft, Err(Error::Refused(Refusal::InsufficientCredit))), "{overdraft:?}");
    let nobody = bank.charge(1, Uuid::nil(), 0).await;
    assert!(matches!(nobody, Err(Error::Refused(Refusal::UserNotFound))), "{nobody:?}");
    assert_eq!((bank.audit().await, bank.credit(ada).await), (before, 100));
    bank.charge(1, ada, 100).await.unwrap();
}

#[tokio::test]
async fn charges_that_race_take_no_more_than_there_is() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    let outcomes = join_all((0..50).map(|purchase| bank.charge(purchase, ada, 10))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    assert_eq!((bank.credit(ada).await, bank.audit().await.sums[0].captured), (0, 100));
}

#[tokio::test]
async fn a_purchase_of_nothing_is_charged_without_credit() {
    let bank = bank().await;
    let ada = bank.user_with(0).await;
    bank.charge(1, ada, 0).await.unwrap();
    let audit = bank.audit().await;
    assert_eq!(captured_and_refunded(&audit), [(1, 0, 0)]);
    assert_eq!(audit.payments.rows[0].currency_code, "EUR");
}

#[tokio::test]
async fn a_refund_gives_back_once_what_was_charged_and_bars_the_purchase() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    let paid = bank.charge(1, ada, 60).await.unwrap();
    let refunded = bank.refund(1).await;
    assert_eq!(refunded, Payment { state: State::Refunded, ..paid });
    assert_eq!(bank.refund(1).await, refunded);
    let again = bank.charge(1, ada, 60).await;
    assert!(matches!(again, Err(Error::Refused(Refusal::PaymentRefunded))), "{again:?}");
    assert_eq!(bank.credit(ada).await, 100);
    assert_eq!(captured_and_refunded(&bank.audit().await), [(1, 60, 60)]);
}

#[tokio::test]
async fn a_refund_that_comes_first_bars_the_charge() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    let mark = bank.refund(1).await;
    assert_eq!((mark.state, mark.paid), (State::Refunded, None));
    assert_eq!(bank.refund(1).await, mark);
    let charge = bank.charge(1, ada, 60).await;
    assert!(matches!(charge, Err(Error::Refused(Refusal::PaymentRefunded))), "{charge:?}");
    assert_eq!(bank.credit(ada).await, 100);
    let audit = bank.audit().await;
    assert_eq!(captured_and_refunded(&audit), [(1, 0, 0)]);
    assert_eq!(audit.payments.rows[0].currency_code, "");
}

#[tokio::test]
async fn a_sweep_forgets_marks_that_are_late_and_no_money_that_moved() {
    let mut bank = bank().await;
    let ada = bank.user_with(100).await;
    bank.charge(1, ada, 10).await.unwrap();
    bank.charge(2, ada, 20).await.unwrap();
    bank.refund(2).await;
    bank.refund(3).await;
    let all = bank.audit().await;
    bank.store.sweep(NOT_AFTER).await.unwrap();
    assert_eq!(bank.audit().await, all);
    bank.now = LATE;
    bank.store.sweep(FORGETTABLE).await.unwrap();
    assert_eq!(captured_and_refunded(&bank.audit().await), [(1, 10, 0), (2, 20, 20)]);
    let late = bank.charge(3, ada, 1).await;
    assert!(matches!(late, Err(Error::Refused(Refusal::TooLate))), "{late:?}");
}

#[tokio::test]
async fn an_audit_pages_through_the_payments_by_purchase() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    for purchase in [3, 1, 5, 2, 4] {
        bank.charge(purchase, ada, 1).await.unwrap();
    }
    let (mut seen, mut page) = (Vec::new(), Page { size: 2, after: None });
    loop {
        let payments = bank.store.audit(page).await.unwrap().payments;
        seen.extend(payments.rows.iter().map(|payment| payment.purchase_id.as_u128()));
        page.after = payments.next;
        if page.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_file_serves_one_process_at_a_time_and_keeps_what_was_answered() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    bank.charge(1, ada, 60).await.unwrap();
    let before = bank.audit().await;

    let path = bank.folder.path().join("user.db");
    let second = Sqlite::open(&path).await.unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");

    let Bank { store, now, identifiers, folder } = bank;
    drop(store);
    let store = Sqlite::open(&path).await.unwrap();
    let bank = Bank { store, now, identifiers, folder };
    assert_eq!((bank.credit(ada).await, bank.audit().await), (40, before));
}
