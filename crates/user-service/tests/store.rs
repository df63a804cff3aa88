//! What a store must do, whichever engine it is on: every test runs against a real
//! database that `bank` opens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::future::{join, join_all};
use service_runtime::{
    Actor, Money, Page, Paged, RequestKey, Role, Timestamp,
    access_token::SigningKey,
    sqlite::{OpenError, REQUEST_RETENTION},
};
use tempfile::TempDir;
use user_service::{
    api_key::{self, ApiKey},
    error::Error,
    ledger::{BalanceLimit, Entry, Kind},
    password::{NewPassword, Password, PasswordHash, Passwords, Proof},
    payment::{ChargeRequest, Paid, Payment, Refusal, State},
    secret::{Digest, RefreshDigest, Secret},
    session::{REFRESH_TOKEN_LIFETIME, Session},
    signing::{NOTICE, PrivateKey, TERM},
    store::{
        Audit, AuditedPayment, Balance, Credentials, Deposit, Ledger, Refund, SignedIn, Sqlite,
        Store, Sum, Users,
    },
    user::{self, Changes, Email, Profile, Update, User},
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
        self.store.create(key, self.new_id(), profile, None, self.now).await
    }

    async fn update(&self, request: u128, id: Uuid, update: Update) -> Result<User, Error> {
        self.update_by(Actor::Operator, request, id, update).await
    }

    async fn update_by(
        &self,
        actor: Actor,
        request: u128,
        id: Uuid,
        update: Update,
    ) -> Result<User, Error> {
        let key = key(request, &format!("{:?}", update.changes));
        self.store.update(key, actor, id, update, self.now).await
    }

    /// A new user who is staff.
    async fn staff(&self) -> Uuid {
        let id = self.user_with(0).await;
        let changes = Changes { role: Some(Role::Staff), ..Changes::default() };
        let update = Update { changes, ..Update::default() };
        self.update(self.new_id().as_u128(), id, update).await.unwrap().id
    }

    async fn delete(&self, id: Uuid) -> User {
        self.store.delete(id, None, self.now).await.unwrap()
    }

    /// A new user with a password.
    async fn user_with_password(&self, text: &str) -> (User, PasswordHash) {
        let hash = hash(text).await;
        let id = self.new_id();
        let email = Email::try_from(format!("{id}@example.com")).unwrap();
        let key = key(id.as_u128(), email.as_str());
        let profile = Profile { email, display_name: "Ada".to_owned() };
        let password = Some(hash.clone());
        let user = self.store.create(key, id, profile, password, self.now).await.unwrap();
        (user, hash)
    }

    /// A new user, and the refresh token of a session of his.
    async fn signed_in_user(&self) -> (User, PasswordHash, RefreshDigest) {
        let (user, hash) = self.user_with_password("correct horse").await;
        let token = self.first_token();
        let session = Session::begin(user.id, token, self.now);
        self.store.begin_session(session, hash.clone()).await.unwrap();
        (user, hash, token)
    }

    /// The first refresh token of a session.
    fn first_token(&self) -> RefreshDigest {
        RefreshDigest { session: self.new_digest(), token: self.new_digest() }
    }

    /// Shows a refresh token, and answers its successor.
    async fn refresh(&self, shown: RefreshDigest) -> Result<(RefreshDigest, SignedIn), Error> {
        let next = RefreshDigest { token: self.new_digest(), ..shown };
        Ok((next, self.store.refresh(shown, next.token, self.now).await?))
    }

    async fn api_key(&self, user_id: Uuid) -> Result<(ApiKey, Digest), Error> {
        self.api_key_by(Actor::Operator, user_id, None).await
    }

    async fn api_key_by(
        &self,
        actor: Actor,
        user_id: Uuid,
        expire_time: Option<Timestamp>,
    ) -> Result<(ApiKey, Digest), Error> {
        let api_key = ApiKey {
            id: self.new_id(),
            user_id,
            display_name: "Till".to_owned(),
            create_time: self.now,
            expire_time,
            revoke_time: None,
        };
        let digest = self.new_digest();
        Ok((self.store.create_api_key(api_key, actor, digest).await?, digest))
    }

    async fn entries(&self, user_id: Uuid) -> Vec<Entry> {
        let page = Page { size: 1000, after: None };
        self.store.entries(user_id, page).await.unwrap().rows
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

    fn new_digest(&self) -> Digest {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(self.new_id().as_bytes());
        Secret::api_key(bytes).digest()
    }

    fn new_id(&self) -> Uuid {
        Uuid::from_u128(self.identifiers.fetch_add(1, Ordering::Relaxed).into())
    }
}

fn euros(minor_units: i64) -> Money {
    Money { currency: "EUR".parse().unwrap(), minor_units }
}

async fn hash(text: &str) -> PasswordHash {
    let password = Password::chosen(text.to_owned()).unwrap();
    Passwords::new(NonZeroUsize::MIN).hash(password, [7; 32]).await.unwrap()
}

/// Every row of a list, two at a time.
async fn all<T>(page: impl AsyncFn(Page) -> Result<Paged<T>, Error>) -> Vec<T> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let page = page(Page { size: 2, after }).await.unwrap();
        rows.extend(page.rows);
        after = page.next;
        if after.is_none() {
            return rows;
        }
    }
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
async fn an_update_changes_what_it_names_once_per_request() {
    let bank = bank().await;
    let ada = bank.create(1, "ada@example.com").await.unwrap();
    let changes = Changes { display_name: Some("Augusta".to_owned()), ..Changes::default() };
    let update = Update { etag: Some(ada.etag()), changes, password: None };
    let renamed = bank.update(2, ada.id, update.clone()).await.unwrap();
    assert_eq!(renamed.profile.display_name, "Augusta");
    assert_eq!((renamed.profile.email.as_str(), renamed.role), ("ada@example.com", Role::Customer));
    assert_ne!(renamed.etag(), ada.etag());
    assert_eq!(bank.update(2, ada.id, update.clone()).await.unwrap(), renamed);
    assert_eq!(bank.store.get(ada.id).await.unwrap(), Some(renamed));

    let stale = bank.update(3, ada.id, update.clone()).await;
    assert!(matches!(stale, Err(Error::User(user::Refusal::EtagStale(_)))), "{stale:?}");
    let nobody = bank.update(4, Uuid::nil(), update).await;
    assert!(matches!(nobody, Err(Error::UserNotFound(_))), "{nobody:?}");
    let changes = Changes { role: Some(Role::Staff), ..Changes::default() };
    let altered = bank.update(2, ada.id, Update { changes, ..Update::default() }).await;
    assert!(matches!(altered, Err(Error::RequestIdReused(_))), "{altered:?}");
}

#[tokio::test]
async fn an_address_cannot_be_taken_by_an_update_either() {
    let bank = bank().await;
    let ada = bank.create(1, "ada@example.com").await.unwrap();
    let grace = bank.create(2, "grace@example.com").await.unwrap();
    let rename = |email: &str| {
        let email = Some(Email::try_from(email.to_owned()).unwrap());
        Update { changes: Changes { email, ..Changes::default() }, ..Update::default() }
    };
    let taken = bank.update(3, grace.id, rename("ADA@example.com")).await;
    assert!(matches!(taken, Err(Error::EmailTaken)), "{taken:?}");
    let own = bank.update(4, ada.id, rename("ADA@example.com")).await.unwrap();
    assert_eq!(own.profile.email.as_str(), "ADA@example.com");
    bank.update(5, ada.id, rename("countess@example.com")).await.unwrap();
    bank.update(6, grace.id, rename("ada@example.com")).await.unwrap();
}

#[tokio::test]
async fn a_user_who_is_deleted_is_gone_and_whatever_was_paid_comes_back() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    bank.charge(1, ada, 60).await.unwrap();
    let stale = bank.store.delete(ada, Some("\"2\"".to_owned()), bank.now).await;
    assert!(matches!(stale, Err(Error::User(user::Refusal::EtagStale(_)))), "{stale:?}");
    let deleted = bank.delete(ada).await;
    assert_eq!(deleted.delete_time, Some(bank.now));
    assert_eq!(bank.delete(ada).await, deleted);

    assert_eq!(bank.store.get(ada).await.unwrap(), None);
    let update = bank.update(2, ada, Update::default()).await;
    assert!(matches!(update, Err(Error::UserNotFound(_))), "{update:?}");
    let deposit = bank.deposit(3, ada, 1).await;
    assert!(matches!(deposit, Err(Error::UserNotFound(_))), "{deposit:?}");
    let balance = bank.store.balance(ada, euros(0).currency).await;
    assert!(matches!(balance, Err(Error::UserNotFound(_))), "{balance:?}");
    let charge = bank.charge(2, ada, 1).await;
    assert!(matches!(charge, Err(Error::Refused(Refusal::UserNotFound))), "{charge:?}");
    bank.charge(1, ada, 60).await.unwrap();

    assert_eq!(bank.refund(1).await.state, State::Refunded);
    let audit = bank.audit().await;
    assert_eq!(captured_and_refunded(&audit), [(1, 60, 60)]);
    assert_eq!(audit.sums[0].balances, 100);
}

#[tokio::test]
async fn the_address_of_a_user_who_is_deleted_can_be_used_again() {
    let bank = bank().await;
    let first = bank.create(1, "ada@example.com").await.unwrap();
    bank.delete(first.id).await;
    let second = bank.create(2, "ADA@example.com").await.unwrap();
    assert_ne!(second.id, first.id);
    bank.delete(second.id).await;
    bank.create(3, "ada@example.com").await.unwrap();
}

#[tokio::test]
async fn users_are_listed_by_creation_and_the_deleted_if_asked_for() {
    let bank = bank().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(bank.user_with(0).await);
    }
    bank.delete(ids[1]).await;
    let list = async |show_deleted| {
        let users = all(async |page| bank.store.list(page, show_deleted).await).await;
        users.into_iter().map(|user| user.id).collect::<Vec<_>>()
    };
    assert_eq!(list(true).await, ids);
    ids.remove(1);
    assert_eq!(list(false).await, ids);
}

#[tokio::test]
async fn a_session_goes_on_token_by_token_with_the_role_of_the_day() {
    let mut bank = bank().await;
    let (ada, _, first) = bank.signed_in_user().await;
    bank.now = bank.now.saturating_add(Duration::from_hours(1));
    let (second, signed_in) = bank.refresh(first).await.unwrap();
    let token_expire_time = bank.now.saturating_add(REFRESH_TOKEN_LIFETIME);
    assert_eq!(signed_in, SignedIn { user_id: ada.id, role: Role::Customer, token_expire_time });

    let changes = Changes { role: Some(Role::Staff), ..Changes::default() };
    bank.update(1, ada.id, Update { changes, ..Update::default() }).await.unwrap();
    let (third, signed_in) = bank.refresh(second).await.unwrap();
    assert_eq!(signed_in.role, Role::Staff);

    bank.now = signed_in.token_expire_time;
    let late = bank.refresh(third).await;
    assert!(matches!(late, Err(Error::RefreshTokenInvalid)), "{late:?}");
    let unknown = bank.refresh(bank.first_token()).await;
    assert!(matches!(unknown, Err(Error::RefreshTokenInvalid)), "{unknown:?}");
}

#[tokio::test]
async fn a_refresh_token_that_is_shown_twice_ends_its_session_and_no_other() {
    let bank = bank().await;
    let (_, _, first) = bank.signed_in_user().await;
    let (_, _, other) = bank.signed_in_user().await;
    let (second, _) = bank.refresh(first).await.unwrap();
    let again = bank.refresh(first).await;
    assert!(matches!(again, Err(Error::RefreshTokenReused(_))), "{again:?}");
    let over = bank.refresh(second).await;
    assert!(matches!(over, Err(Error::RefreshTokenInvalid)), "{over:?}");
    bank.refresh(other).await.unwrap();
}

#[tokio::test]
async fn a_refresh_token_that_was_used_long_ago_still_ends_its_session() {
    let bank = bank().await;
    let (_, _, first) = bank.signed_in_user().await;
    let mut current = first;
    for _ in 0..200 {
        current = bank.refresh(current).await.unwrap().0;
    }
    let again = bank.refresh(first).await;
    assert!(matches!(again, Err(Error::RefreshTokenReused(_))), "{again:?}");
    let over = bank.refresh(current).await;
    assert!(matches!(over, Err(Error::RefreshTokenInvalid)), "{over:?}");
}

#[tokio::test]
async fn of_two_who_show_a_refresh_token_at_once_one_wins_and_the_session_ends() {
    let bank = bank().await;
    let (_, _, token) = bank.signed_in_user().await;
    let (one, other) = join(bank.refresh(token), bank.refresh(token)).await;
    let won: Vec<_> = [one, other].into_iter().flatten().collect();
    let [(next, _)] = won.as_slice() else { panic!("{won:?}") };
    let over = bank.refresh(*next).await;
    assert!(matches!(over, Err(Error::RefreshTokenInvalid)), "{over:?}");
}

#[tokio::test]
async fn a_new_password_needs_the_old_one_and_ends_all_sessions() {
    let bank = bank().await;
    let (ada, old, token) = bank.signed_in_user().await;
    let new = hash("battery staple").await;
    let change = |proof| {
        let password = Some(NewPassword { hash: new.clone(), proof });
        Update { password, ..Update::default() }
    };
    for (request, proof) in [(1, Proof::Failed), (2, Proof::Shown(new.clone()))] {
        let wrong = bank.update(request, ada.id, change(proof)).await;
        assert!(matches!(wrong, Err(Error::User(user::Refusal::PasswordWrong))), "{wrong:?}");
    }
    let changed = bank.update(3, ada.id, change(Proof::Shown(old.clone()))).await.unwrap();
    // Whoever repeats the request shows a password that is the old one by now.
    assert_eq!(bank.update(3, ada.id, change(Proof::Failed)).await.unwrap(), changed);

    let over = bank.refresh(token).await;
    assert!(matches!(over, Err(Error::RefreshTokenInvalid)), "{over:?}");
    let begin = async |password| {
        let session = Session::begin(ada.id, bank.first_token(), bank.now);
        bank.store.begin_session(session, password).await
    };
    let late = begin(old).await;
    assert!(matches!(late, Err(Error::SignInFailed)), "{late:?}");
    begin(new.clone()).await.unwrap();
    bank.update(4, ada.id, change(Proof::NotNeeded)).await.unwrap();
}

#[tokio::test]
async fn a_password_is_found_by_address_in_any_case_until_its_user_is_deleted() {
    let bank = bank().await;
    let (ada, hash, token) = bank.signed_in_user().await;
    let email = Email::try_from(ada.profile.email.as_str().to_uppercase()).unwrap();
    let found = bank.store.password_by_email(&email).await.unwrap();
    assert_eq!(found, Some((ada.id, hash.clone())));
    assert_eq!(bank.store.password(ada.id).await.unwrap(), Some(hash.clone()));
    let grace = bank.create(1, "grace@example.com").await.unwrap();
    assert_eq!(bank.store.password_by_email(&grace.profile.email).await.unwrap(), None);

    bank.delete(ada.id).await;
    assert_eq!(bank.store.password_by_email(&email).await.unwrap(), None);
    assert_eq!(bank.store.password(ada.id).await.unwrap(), None);
    let over = bank.refresh(token).await;
    assert!(matches!(over, Err(Error::RefreshTokenInvalid)), "{over:?}");
    let session = Session::begin(ada.id, bank.first_token(), bank.now);
    let gone = bank.store.begin_session(session, hash).await;
    assert!(matches!(gone, Err(Error::SignInFailed)), "{gone:?}");
}

#[tokio::test]
async fn an_api_key_is_exchanged_until_it_is_revoked_or_its_user_deleted() {
    let bank = bank().await;
    let ada = bank.user_with(0).await;
    let ((revoked, of_revoked), (_, of_deleted)) =
        (bank.api_key(ada).await.unwrap(), bank.api_key(ada).await.unwrap());
    let exchange = async |digest| bank.store.user_of_api_key(digest, bank.now).await;
    assert_eq!(exchange(of_revoked).await.unwrap(), (ada, Role::Customer));

    let own = Actor::Customer(ada);
    let gone = bank.store.revoke_api_key(revoked.id, own, bank.now).await.unwrap();
    assert_eq!(gone, ApiKey { revoke_time: Some(bank.now), ..revoked });
    let later = bank.now.saturating_add(Duration::from_secs(1));
    assert_eq!(bank.store.revoke_api_key(gone.id, own, later).await.unwrap(), gone);
    assert!(matches!(exchange(of_revoked).await, Err(Error::ApiKeyInvalid)));
    exchange(of_deleted).await.unwrap();
    bank.delete(ada).await;
    for digest in [of_deleted, [0; 32]] {
        assert!(matches!(exchange(digest).await, Err(Error::ApiKeyInvalid)));
    }
    let late = bank.api_key(ada).await;
    assert!(matches!(late, Err(Error::UserNotFound(_))), "{late:?}");
    let keys = all(async |page| bank.store.list_api_keys(ada, page).await).await;
    assert!(keys.iter().all(|api_key| api_key.revoke_time.is_some()) && keys.len() == 2);
}

#[tokio::test]
async fn an_api_key_of_another_user_is_not_there_for_a_customer() {
    let bank = bank().await;
    let (ada, grace) = (bank.user_with(0).await, bank.user_with(0).await);
    let (api_key, _) = bank.api_key(ada).await.unwrap();
    let revoke = async |id, actor| bank.store.revoke_api_key(id, actor, bank.now).await;
    for id in [api_key.id, Uuid::nil()] {
        let refused = revoke(id, Actor::Customer(grace)).await;
        assert!(matches!(refused, Err(Error::ApiKeyNotFound(_))), "{refused:?}");
    }
    revoke(api_key.id, Actor::Staff(grace)).await.unwrap();
    assert!(
        bank.store
            .list_api_keys(grace, Page { size: 9, after: None })
            .await
            .unwrap()
            .rows
            .is_empty()
    );
}

#[tokio::test]
async fn staff_makes_api_keys_for_itself_and_for_customers_and_not_for_other_staff() {
    let bank = bank().await;
    let (ada, grace, eve) = (bank.user_with(0).await, bank.staff().await, bank.staff().await);
    let create = async |actor, user_id| bank.api_key_by(actor, user_id, None).await;
    let refused = create(Actor::Staff(eve), grace).await;
    let not_allowed = user::Refusal::CredentialsNotAllowed(grace);
    assert!(matches!(refused, Err(Error::User(no)) if no == not_allowed), "{refused:?}");
    for (actor, user_id) in [
        (Actor::Staff(eve), ada),
        (Actor::Staff(eve), eve),
        (Actor::Customer(ada), ada),
        (Actor::Operator, grace),
    ] {
        create(actor, user_id).await.unwrap();
    }
}

#[tokio::test]
async fn an_update_by_staff_is_judged_by_the_role_on_record() {
    let bank = bank().await;
    let (ada, eve) = (bank.user_with(0).await, Actor::Staff(bank.staff().await));
    let update = |email: &str| {
        let email = Some(Email::try_from(email.to_owned()).unwrap());
        Update { changes: Changes { email, ..Changes::default() }, ..Update::default() }
    };
    let changed = bank.update_by(eve, 1, ada, update("eve@example.com")).await.unwrap();
    let promotion = Changes { role: Some(Role::Staff), ..Changes::default() };
    let promotion = Update { changes: promotion, ..Update::default() };
    let promoted = bank.update(2, ada, promotion.clone()).await.unwrap();
    let refused = bank.update_by(eve, 3, ada, update("eva@example.com")).await;
    let not_allowed = user::Refusal::CredentialsNotAllowed(ada);
    assert!(matches!(refused, Err(Error::User(no)) if no == not_allowed), "{refused:?}");
    // What is on record already is no change.
    let same = update(changed.profile.email.as_str());
    assert_eq!(bank.update_by(eve, 4, ada, same).await.unwrap(), promoted);
    assert_eq!(bank.update_by(eve, 5, ada, promotion).await.unwrap(), promoted);
}

#[tokio::test]
async fn a_user_has_100_valid_api_keys_at_most() {
    let mut bank = bank().await;
    let ada = bank.user_with(0).await;
    let mut keys = Vec::new();
    let soon = bank.now.saturating_add(Duration::from_secs(1));
    keys.push(bank.api_key_by(Actor::Operator, ada, Some(soon)).await.unwrap().0);
    for _ in 1..api_key::MOST_PER_USER {
        keys.push(bank.api_key(ada).await.unwrap().0);
    }
    let listed = bank.store.list_api_keys(ada, Page { size: 1000, after: None }).await.unwrap();
    assert_eq!(listed.rows, keys);
    let many = bank.api_key(ada).await;
    assert!(matches!(many, Err(Error::TooManyApiKeys)), "{many:?}");
    bank.store.revoke_api_key(keys[1].id, Actor::Operator, bank.now).await.unwrap();
    bank.api_key(ada).await.unwrap();
    bank.now = soon;
    bank.api_key(ada).await.unwrap();
    let many = bank.api_key(ada).await;
    assert!(matches!(many, Err(Error::TooManyApiKeys)), "{many:?}");
}

#[tokio::test]
async fn an_api_key_is_forgotten_a_while_after_it_was_last_valid() {
    let bank = bank().await;
    let ada = bank.user_with(0).await;
    let expired = bank.api_key_by(Actor::Operator, ada, Some(bank.now)).await.unwrap().0;
    let revoked = bank.api_key(ada).await.unwrap().0;
    let valid = bank.api_key(ada).await.unwrap().0;
    bank.store.revoke_api_key(revoked.id, Actor::Operator, bank.now).await.unwrap();
    let ids = async || {
        let keys = all(async |page| bank.store.list_api_keys(ada, page).await).await;
        keys.into_iter().map(|api_key| api_key.id).collect::<Vec<_>>()
    };
    let until = bank.now.saturating_add(api_key::RETENTION);
    bank.store.sweep(until).await.unwrap();
    assert_eq!(ids().await, [expired.id, revoked.id, valid.id]);
    bank.store.sweep(until.saturating_add(Duration::from_micros(1))).await.unwrap();
    assert_eq!(ids().await, [valid.id]);
}

#[tokio::test]
async fn many_replicas_that_find_a_signing_key_due_make_one() {
    let bank = bank().await;
    let rotate = |now| {
        let private_key = SigningKey::generate(&[7; 32]).unwrap();
        bank.store.rotate_signing_keys(bank.new_id(), PrivateKey(private_key), now)
    };
    let start = bank.now;
    let made = join_all((0..5).map(|_| rotate(start))).await;
    let first = bank.store.signing_keys().await.unwrap();
    assert!(made.into_iter().all(|keys| keys.unwrap() == first));
    assert_eq!(first.published(start).count(), 1);

    let due = start.saturating_add(TERM).saturating_sub(NOTICE);
    join_all((0..5).map(|_| rotate(due))).await;
    let both = bank.store.signing_keys().await.unwrap();
    assert_eq!((both.published(due).count(), both.signer(due)), (2, first.signer(due)));
    let over = due.saturating_add(2 * NOTICE).saturating_add(Duration::from_mins(6));
    let left = rotate(over).await.unwrap();
    assert_eq!(left.published(over).count(), 1);
    assert_ne!(left.signer(over), first.signer(start));
}

#[tokio::test]
async fn entries_are_listed_in_the_order_in_which_they_were_made() {
    let bank = bank().await;
    let (ada, grace) = (bank.user_with(0).await, bank.user_with(50).await);
    let charge = ChargeRequest {
        purchase_id: Uuid::from_u128(1),
        paid: Paid { user_id: ada, amount: euros(30) },
        not_after: NOT_AFTER,
    };
    bank.deposit(1, ada, 100).await.unwrap();
    // An identifier that was drawn early is written late.
    bank.store.charge(charge, Uuid::from_u128(1), bank.now).await.unwrap();
    bank.refund(1).await;
    let entries = bank.entries(ada).await;
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.kind, entry.amount.minor_units, entry.purchase_id))
        .collect();
    let purchase = Some(Uuid::from_u128(1));
    assert_eq!(
        seen,
        [(Kind::Deposit, 100, None), (Kind::Charge, -30, purchase), (Kind::Refund, 30, purchase)]
    );
    assert!(entries.is_sorted_by_key(|entry| entry.id));
    assert_eq!(all(async |page| bank.store.entries(ada, page).await).await, entries);
    let after = Page { size: 1000, after: Some(entries[1].id) };
    assert_eq!(bank.store.entries(ada, after).await.unwrap().rows, entries[2..]);
    assert_eq!(bank.entries(grace).await.len(), 1);
    assert_eq!(bank.entries(Uuid::nil()).await, []);
    bank.audit().await;
}

#[tokio::test]
async fn a_transfer_that_is_moved_behind_the_last_collides_with_no_other_users() {
    let bank = bank().await;
    let (ada, grace) = (bank.user_with(50).await, bank.user_with(0).await);
    // The next identifier after Ada's last is taken.
    let after_the_last = Uuid::from_u128(bank.entries(ada).await[0].id.as_u128() + 1);
    let deposit = Deposit { key: key(1, "grace"), user_id: grace, amount: euros(70) };
    bank.store.deposit(deposit, after_the_last, bank.now).await.unwrap();
    for (purchase, user_id) in [(1, ada), (2, grace)] {
        let charge = ChargeRequest {
            purchase_id: Uuid::from_u128(purchase),
            paid: Paid { user_id, amount: euros(30) },
            not_after: NOT_AFTER,
        };
        bank.store.charge(charge, Uuid::from_u128(purchase), bank.now).await.unwrap();
    }
    let [mut ids, of_grace] = [bank.entries(ada).await, bank.entries(grace).await]
        .map(|entries| entries.iter().map(|entry| entry.id).collect::<Vec<_>>());
    assert!(ids.is_sorted() && of_grace.is_sorted() && of_grace[0] == after_the_last);
    ids.extend(of_grace);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    bank.audit().await;
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
    assert!(matches!(nobody, Err(Error::UserNotFound(_))), "{nobody:?}");
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
async fn a_sweep_says_whether_there_is_more_to_forget() {
    let bank = bank().await;
    join_all((1..=501).map(|purchase| bank.refund(purchase))).await;
    let sweep = async || bank.store.sweep(FORGETTABLE).await.unwrap();
    assert!(sweep().await);
    assert_eq!(bank.audit().await.payments.rows.len(), 1);
    assert!(!sweep().await);
    assert_eq!(bank.audit().await.payments.rows, []);
    assert!(!sweep().await);
}

#[tokio::test]
async fn a_sweep_forgets_requests_and_tokens_when_their_time_is_over() {
    let bank = bank().await;
    let ada = bank.create(1, "ada@example.com").await.unwrap();
    let (_, _, token) = bank.signed_in_user().await;
    let (second, _) = bank.refresh(token).await.unwrap();
    let after =
        |time: Timestamp, retention| time.saturating_add(retention + Duration::from_secs(1));

    bank.store.sweep(bank.now).await.unwrap();
    assert_eq!(bank.create(1, "ada@example.com").await.unwrap(), ada);
    bank.store.sweep(after(bank.now, REQUEST_RETENTION)).await.unwrap();
    let new = bank.create(1, "ada@example.com").await;
    assert!(matches!(new, Err(Error::EmailTaken)), "{new:?}");

    bank.store.sweep(after(bank.now, REFRESH_TOKEN_LIFETIME)).await.unwrap();
    for token in [token, second] {
        let gone = bank.refresh(token).await;
        assert!(matches!(gone, Err(Error::RefreshTokenInvalid)), "{gone:?}");
    }
}

#[tokio::test]
async fn an_audit_pages_through_the_payments_by_purchase() {
    let bank = bank().await;
    let ada = bank.user_with(100).await;
    for purchase in [3, 1, 5, 2, 4] {
        bank.charge(purchase, ada, 1).await.unwrap();
    }
    let payments = all(async |page| bank.store.audit(page).await.map(|audit| audit.payments)).await;
    let seen: Vec<_> = payments.iter().map(|payment| payment.purchase_id.as_u128()).collect();
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
