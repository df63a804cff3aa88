//! What the domain needs of a database. Every method is one transaction: it holds
//! wholly or not at all, and an answer means that it is on disk.

mod sqlite;

use std::future::Future;

use service_runtime::{Currency, Money, Page, Paged, RequestKey, Timestamp};
use uuid::Uuid;

pub use sqlite::Sqlite;

use crate::{
    error::Error,
    payment::{ChargeRequest, Payment},
    user::{Profile, User},
};

/// The users, their credit and the payments.
pub trait Store: Clone + Send + Sync + 'static {
    /// Creates a user under a new identifier. A repeat of the request gets the first
    /// answer.
    fn create(
        &self,
        key: RequestKey,
        id: Uuid,
        profile: Profile,
        now: Timestamp,
    ) -> impl Future<Output = Result<User, Error>> + Send;

    /// The user, if there is one.
    fn get(&self, id: Uuid) -> impl Future<Output = Result<Option<User>, Error>> + Send;

    /// What a user can spend in one currency.
    fn balance(
        &self,
        user_id: Uuid,
        currency: Currency,
    ) -> impl Future<Output = Result<Balance, Error>> + Send;

    /// [`ledger::deposit`](crate::ledger::deposit) on what is on record. A repeat of
    /// the request gets the first answer.
    fn deposit(
        &self,
        deposit: Deposit,
        transfer_id: Uuid,
        now: Timestamp,
    ) -> impl Future<Output = Result<Balance, Error>> + Send;

    /// [`payment::charge`](crate::payment::charge) on what is on record.
    fn charge(
        &self,
        request: ChargeRequest,
        transfer_id: Uuid,
        now: Timestamp,
    ) -> impl Future<Output = Result<Payment, Error>> + Send;

    /// [`payment::refund`](crate::payment::refund) on what is on record.
    fn refund(
        &self,
        refund: Refund,
        transfer_id: Uuid,
        now: Timestamp,
    ) -> impl Future<Output = Result<Payment, Error>> + Send;

    /// Forgets what is collectable and never moved money, a bounded number at once.
    fn sweep(&self, now: Timestamp) -> impl Future<Output = Result<(), Error>> + Send;

    /// The sums of the ledger and a page of payments by purchase.
    fn audit(&self, page: Page) -> impl Future<Output = Result<Audit, Error>> + Send;
}

/// What a user can spend in one currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Balance {
    /// The user.
    pub user_id: Uuid,
    /// How much.
    pub amount: Money,
}

/// Money to credit to a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deposit {
    /// The key of the request.
    pub key: RequestKey,
    /// The user.
    pub user_id: Uuid,
    /// How much, more than zero.
    pub amount: Money,
}

/// A purchase whose price is to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refund {
    /// The purchase.
    pub purchase_id: Uuid,
    /// Until when the mark that an unknown purchase gets must be kept.
    pub not_after: Timestamp,
}

/// What an operator needs to check the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The sums of each currency.
    pub sums: Vec<Sum>,
    /// Accounts that differ from the sum of their postings, or are negative though
    /// they may not be.
    pub unsound_account_count: i64,
    /// The payments of the page.
    pub payments: Paged<AuditedPayment>,
}

/// The sums of one currency, in minor units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The currency.
    pub currency: Currency,
    /// All postings. Zero in a sound ledger.
    pub postings: i64,
    /// What users can spend.
    pub balances: i64,
    /// What was deposited.
    pub deposited: i64,
    /// What was captured and not refunded.
    pub captured: i64,
}

/// What the ledger says of one purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedPayment {
    /// The purchase.
    pub purchase_id: Uuid,
    /// The currency; empty if nothing was ever captured.
    pub currency_code: String,
    /// What was taken from the user, in minor units.
    pub captured_minor_units: i64,
    /// What was given back to the user, in minor units.
    pub refunded_minor_units: i64,
}
