//! What the domain needs of a database. Every method is one transaction: it holds
//! wholly or not at all, and an answer means that it is on disk.

mod sqlite;

use std::future::Future;

use service_runtime::{Actor, Currency, Money, Page, Paged, RequestKey, Role, Timestamp};
use uuid::Uuid;

pub use sqlite::Sqlite;

use crate::{
    api_key::ApiKey,
    error::Error,
    ledger::Entry,
    password::PasswordHash,
    payment::{ChargeRequest, Payment},
    secret::{Digest, RefreshDigest},
    session::Session,
    signing::{Keys, PrivateKey},
    user::{Email, Profile, Update, User},
};

/// All that the service keeps.
pub trait Store: Users + Ledger + Credentials + Clone + Send + Sync + 'static {
    /// Forgets what is of no use any more, a bounded number at once, and says whether there
    /// may be more. Money that moved is never forgotten.
    fn sweep(&self, now: Timestamp) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// The users.
pub trait Users {
    /// Creates a user, who is a customer, under a new identifier. A repeat of the request
    /// gets the first answer.
    fn create(
        &self,
        key: RequestKey,
        id: Uuid,
        profile: Profile,
        password: Option<PasswordHash>,
        now: Timestamp,
    ) -> impl Future<Output = Result<User, Error>> + Send;

    /// The user, if there is one who is not deleted.
    fn get(&self, id: Uuid) -> impl Future<Output = Result<Option<User>, Error>> + Send;

    /// Users in the order of their creation, the deleted among them if so wished.
    fn list(
        &self,
        page: Page,
        show_deleted: bool,
    ) -> impl Future<Output = Result<Paged<User>, Error>> + Send;

    /// [`User::update`] on what is on record. A new password ends all sessions of the user.
    /// A repeat of the request gets the first answer.
    fn update(
        &self,
        key: RequestKey,
        actor: Actor,
        id: Uuid,
        update: Update,
        now: Timestamp,
    ) -> impl Future<Output = Result<User, Error>> + Send;

    /// [`User::delete`] on what is on record. Ends all that the user can sign in with.
    fn delete(
        &self,
        id: Uuid,
        etag: Option<String>,
        now: Timestamp,
    ) -> impl Future<Output = Result<User, Error>> + Send;
}

/// The store credit of users, and the payments. A user who is deleted pays and is
/// credited no more, but gets back what was paid.
pub trait Ledger {
    /// What a user can spend in one currency.
    fn balance(
        &self,
        user_id: Uuid,
        currency: Currency,
    ) -> impl Future<Output = Result<Balance, Error>> + Send;

    /// What moved the credit of a user, oldest first; nothing if there is no such user.
    fn entries(
        &self,
        user_id: Uuid,
        page: Page,
    ) -> impl Future<Output = Result<Paged<Entry>, Error>> + Send;

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

    /// The sums of the ledger and a page of payments by purchase.
    fn audit(&self, page: Page) -> impl Future<Output = Result<Audit, Error>> + Send;
}

/// What users sign in with, and what proves that they did.
pub trait Credentials {
    /// The password of the user who has an address.
    fn password_by_email(
        &self,
        email: &Email,
    ) -> impl Future<Output = Result<Option<(Uuid, PasswordHash)>, Error>> + Send;

    /// The password of a user.
    fn password(
        &self,
        user_id: Uuid,
    ) -> impl Future<Output = Result<Option<PasswordHash>, Error>> + Send;

    /// Begins a session, if its user has this password still.
    fn begin_session(
        &self,
        session: Session,
        password: PasswordHash,
    ) -> impl Future<Output = Result<SignedIn, Error>> + Send;

    /// [`Session::show`] on what is on record. If the session goes on, then with `next`.
    fn refresh(
        &self,
        shown: RefreshDigest,
        next: Digest,
        now: Timestamp,
    ) -> impl Future<Output = Result<SignedIn, Error>> + Send;

    /// Puts a key on record, if the actor is [admitted](crate::user::admit_to_credentials)
    /// and its user has not too many.
    fn create_api_key(
        &self,
        api_key: ApiKey,
        actor: Actor,
        digest: Digest,
    ) -> impl Future<Output = Result<ApiKey, Error>> + Send;

    /// The keys of a user in the order of their creation; none if there is no such user.
    fn list_api_keys(
        &self,
        user_id: Uuid,
        page: Page,
    ) -> impl Future<Output = Result<Paged<ApiKey>, Error>> + Send;

    /// [`ApiKey::revoke`] on what is on record. The key of a user for whom the actor may
    /// not act is not there for him.
    fn revoke_api_key(
        &self,
        id: Uuid,
        actor: Actor,
        now: Timestamp,
    ) -> impl Future<Output = Result<ApiKey, Error>> + Send;

    /// The user in whose name a key speaks, if it is valid, and what he may do.
    fn user_of_api_key(
        &self,
        digest: Digest,
        now: Timestamp,
    ) -> impl Future<Output = Result<(Uuid, Role), Error>> + Send;

    /// The keys that sign access tokens.
    fn signing_keys(&self) -> impl Future<Output = Result<Keys, Error>> + Send;

    /// Forgets the keys that are over, and puts this one on record if one is due. However
    /// many ask at once, one of them has its key taken.
    fn rotate_signing_keys(
        &self,
        id: Uuid,
        private_key: PrivateKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<Keys, Error>> + Send;
}

/// A user who has signed in, or is still so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedIn {
    /// The user.
    pub user_id: Uuid,
    /// What the user may do.
    pub role: Role,
    /// When the refresh token expires that was put on record.
    pub token_expire_time: Timestamp,
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
