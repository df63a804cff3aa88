//! The ledger and the payments on `SQLite`. Decisions are [`payment`]'s and [`ledger`]'s; the
//! conditions in the SQL and the CHECKs below them hold even if they erred.

use futures::FutureExt;
use service_runtime::{Currency, Money, Page, Paged, Timestamp, sqlite::currency};
use sqlx::{FromRow, Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{SWEEP, Sqlite};
use crate::{
    error::Error,
    ledger::{self, Account, Entry, Kind, Posting, Transfer},
    payment::{self, ChargeRequest, Decision, Paid, Payment, RETENTION, Refusal, State},
    store::{Audit, AuditedPayment, Balance, Deposit, Ledger, Refund, Sum},
};

impl Ledger for Sqlite {
    async fn balance(&self, user_id: Uuid, currency: Currency) -> Result<Balance, Error> {
        let credit = self.0.read(async |db| credit(db, user_id, currency).await).await?;
        let minor_units = credit.ok_or(Error::UserNotFound(user_id))?;
        Ok(Balance { user_id, amount: Money { currency, minor_units } })
    }

    async fn entries(&self, user_id: Uuid, page: Page) -> Result<Paged<Entry>, Error> {
        let rows = self.0.read(async |db| {
            sqlx::query_as(
                "SELECT * FROM postings WHERE owner = 'USER' AND user_id = ? AND transfer_id > ?
                 ORDER BY transfer_id LIMIT ?",
            )
            .bind(user_id)
            .bind(page.after_bytes())
            .bind(page.size + 1)
            .fetch_all(db)
            .await
        });
        Ok(Paged::from_surplus(rows.await?, page.size, |entry: &Entry| entry.id))
    }

    async fn deposit(
        &self,
        deposit: Deposit,
        transfer_id: Uuid,
        now: Timestamp,
    ) -> Result<Balance, Error> {
        let Deposit { key, user_id, amount } = deposit;
        let cause = Cause { kind: Kind::Deposit, id: key.request_id };
        self.0
            .write_once(key, now, move |db| {
                async move {
                    let credit = credit(db, user_id, amount.currency).await?;
                    let credit = credit.ok_or(Error::UserNotFound(user_id))?;
                    let till = balance(db, Account::Till, amount.currency).await?;
                    let transfer = ledger::deposit(user_id, amount, till)?;
                    post(db, transfer_id, cause, transfer, now).await?;
                    let minor_units = credit + amount.minor_units;
                    Ok(Balance { user_id, amount: Money { minor_units, ..amount } })
                }
                .boxed()
            })
            .await
    }

    async fn charge(
        &self,
        request: ChargeRequest,
        transfer_id: Uuid,
        now: Timestamp,
    ) -> Result<Payment, Error> {
        self.0
            .write(move |db| {
                async move {
                    let Paid { user_id, amount } = request.paid;
                    let current = payment(db, request.purchase_id).await?;
                    let credit = credit(db, user_id, amount.currency).await?;
                    let decision = payment::charge(current.as_ref(), &request, credit, now)?;
                    apply(db, decision, transfer_id, Kind::Charge, now).await
                }
                .boxed()
            })
            .await
    }

    async fn refund(
        &self,
        refund: Refund,
        transfer_id: Uuid,
        now: Timestamp,
    ) -> Result<Payment, Error> {
        let Refund { purchase_id, not_after } = refund;
        self.0
            .write(move |db| {
                async move {
                    let current = payment(db, purchase_id).await?;
                    let decision = payment::refund(current.as_ref(), purchase_id, not_after, now);
                    apply(db, decision, transfer_id, Kind::Refund, now).await
                }
                .boxed()
            })
            .await
    }

    async fn audit(&self, page: Page) -> Result<Audit, Error> {
        self.0.snapshot(async |db| audit(db, page).await).await
    }
}

async fn audit(db: &mut SqliteConnection, page: Page) -> Result<Audit, Error> {
    let sums = sqlx::query_as(
        "WITH posted AS (
             SELECT currency_code,
                    sum(amount_minor_units) AS postings,
                    sum(amount_minor_units) FILTER (
                        WHERE kind = 'DEPOSIT' AND owner = 'USER'
                    ) AS deposited,
                    sum(amount_minor_units) FILTER (WHERE owner = 'SALES') AS captured
             FROM postings GROUP BY currency_code
         ), held AS (
             SELECT currency_code,
                    sum(balance_minor_units) FILTER (WHERE owner = 'USER') AS balances
             FROM accounts GROUP BY currency_code
         )
         SELECT currency_code,
                coalesce(postings, 0) AS postings,
                coalesce(balances, 0) AS balances,
                coalesce(deposited, 0) AS deposited,
                coalesce(captured, 0) AS captured
         FROM held LEFT JOIN posted USING (currency_code) ORDER BY currency_code",
    )
    .fetch_all(&mut *db)
    .await?;
    let (unsound_account_count,) = sqlx::query_as(
        "WITH posted AS (
             SELECT owner, user_id, currency_code, sum(amount_minor_units) AS balance
             FROM postings GROUP BY owner, user_id, currency_code
         )
         SELECT count(*)
         FROM accounts LEFT JOIN posted USING (owner, user_id, currency_code)
         WHERE balance_minor_units <> coalesce(balance, 0)
            OR (owner <> 'TILL' AND balance_minor_units < 0)",
    )
    .fetch_one(&mut *db)
    .await?;
    let payments = sqlx::query_as(
        "SELECT purchase_id,
                coalesce(max(postings.currency_code), '') AS currency_code,
                coalesce(-sum(postings.amount_minor_units) FILTER (
                    WHERE kind = 'CHARGE'
                ), 0) AS captured_minor_units,
                coalesce(sum(postings.amount_minor_units) FILTER (
                    WHERE kind = 'REFUND'
                ), 0) AS refunded_minor_units
         FROM payments LEFT JOIN postings
           ON cause_id = purchase_id AND kind <> 'DEPOSIT' AND owner = 'USER'
         WHERE purchase_id > ?
         GROUP BY purchase_id ORDER BY purchase_id LIMIT ?",
    )
    .bind(page.after_bytes())
    .bind(page.size + 1)
    .fetch_all(&mut *db)
    .await?;
    Ok(Audit {
        sums,
        unsound_account_count,
        payments: Paged::from_surplus(payments, page.size, |payment: &AuditedPayment| {
            payment.purchase_id
        }),
    })
}

/// Forgets marks whose time is over, a bounded number at once, and says whether there may
/// be more.
pub(super) async fn forget_marks(
    db: &mut SqliteConnection,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let due: Vec<Payment> =
        sqlx::query_as("SELECT * FROM payments WHERE user_id IS NULL AND not_after < ? LIMIT ?")
            .bind(now.saturating_sub(RETENTION).as_micros())
            .bind(SWEEP)
            .fetch_all(&mut *db)
            .await?;
    for payment in due.iter().filter(|payment| payment.is_collectable(now)) {
        sqlx::query("DELETE FROM payments WHERE purchase_id = ?")
            .bind(payment.purchase_id)
            .execute(&mut *db)
            .await?;
    }
    Ok(due.len() >= SWEEP.into())
}

/// What a user can spend, in minor units; none if there is no such user.
async fn credit(
    db: &mut SqliteConnection,
    user_id: Uuid,
    currency: Currency,
) -> Result<Option<i64>, sqlx::Error> {
    let found = sqlx::query("SELECT 1 FROM users WHERE id = ? AND delete_time IS NULL")
        .bind(user_id)
        .fetch_optional(&mut *db)
        .await?;
    match found {
        Some(_) => balance(db, Account::User(user_id), currency).await.map(Some),
        None => Ok(None),
    }
}

/// The balance of an account in minor units; zero before the first posting.
async fn balance(
    db: &mut SqliteConnection,
    account: Account,
    currency: Currency,
) -> Result<i64, sqlx::Error> {
    let (owner, user_id) = account_code(account);
    let row: Option<(i64,)> = sqlx::query_as(
        "SELECT balance_minor_units FROM accounts
         WHERE owner = ? AND user_id = ? AND currency_code = ?",
    )
    .bind(owner)
    .bind(user_id)
    .bind(currency.as_str())
    .fetch_optional(db)
    .await?;
    Ok(row.map_or(0, |(minor_units,)| minor_units))
}

async fn payment(
    db: &mut SqliteConnection,
    purchase_id: Uuid,
) -> Result<Option<Payment>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM payments WHERE purchase_id = ?")
        .bind(purchase_id)
        .fetch_optional(db)
        .await
}

/// Writes what was decided, in the transaction that it was decided in.
async fn apply(
    db: &mut SqliteConnection,
    decision: Decision,
    transfer_id: Uuid,
    kind: Kind,
    now: Timestamp,
) -> Result<Payment, Error> {
    let (payment, transfer) = match decision {
        Decision::OnRecord(payment) => return Ok(payment),
        Decision::Write { payment, transfer } => (payment, transfer),
    };
    if let Some(transfer) = transfer {
        let cause = Cause { kind, id: payment.purchase_id };
        post(db, transfer_id, cause, transfer, now).await?;
    }
    sqlx::query(
        "INSERT INTO payments (
             purchase_id, state, user_id, amount_minor_units, currency_code, not_after, create_time
         ) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (purchase_id) DO UPDATE SET state = excluded.state",
    )
    .bind(payment.purchase_id)
    .bind(state_code(payment.state))
    .bind(payment.paid.map(|paid| paid.user_id))
    .bind(payment.paid.map(|paid| paid.amount.minor_units))
    .bind(payment.paid.as_ref().map(|paid| paid.amount.currency.as_str()))
    .bind(payment.not_after.as_micros())
    .bind(payment.create_time.as_micros())
    .execute(db)
    .await?;
    Ok(payment)
}

/// Why money moves.
#[derive(Clone, Copy, Debug)]
struct Cause {
    kind: Kind,
    /// The request of a deposit, else the purchase.
    id: Uuid,
}

/// Moves money: both balances, and the two lines of the ledger.
async fn post(
    db: &mut SqliteConnection,
    transfer_id: Uuid,
    cause: Cause,
    transfer: Transfer,
    now: Timestamp,
) -> Result<(), Error> {
    let transfer_id = after_the_last(db, transfer_id).await?;
    for Posting { account, amount } in transfer.postings() {
        let (owner, user_id) = account_code(account);
        sqlx::query(
            "INSERT INTO accounts (owner, user_id, currency_code, balance_minor_units)
             VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING",
        )
        .bind(owner)
        .bind(user_id)
        .bind(amount.currency.as_str())
        .execute(&mut *db)
        .await?;
        let moved = sqlx::query(
            "UPDATE accounts SET balance_minor_units = balance_minor_units + ?4
             WHERE owner = ?1 AND user_id = ?2 AND currency_code = ?3
               AND (owner <> 'USER' OR balance_minor_units >= -?4)",
        )
        .bind(owner)
        .bind(user_id)
        .bind(amount.currency.as_str())
        .bind(amount.minor_units)
        .execute(&mut *db)
        .await?;
        if moved.rows_affected() == 0 {
            return Err(Refusal::InsufficientCredit.into());
        }
        sqlx::query(
            "INSERT INTO postings (
                 transfer_id, kind, cause_id, owner, user_id, currency_code,
                 amount_minor_units, create_time
             ) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(transfer_id)
        .bind(kind_code(cause.kind))
        .bind(cause.id)
        .bind(owner)
        .bind(user_id)
        .bind(amount.currency.as_str())
        .bind(amount.minor_units)
        .bind(now.as_micros())
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// The identifier of a transfer, moved behind the last of all if it was drawn before that:
/// who reads on after the last entry that he saw must miss none, and a place between two
/// may be taken.
async fn after_the_last(db: &mut SqliteConnection, transfer_id: Uuid) -> Result<Uuid, sqlx::Error> {
    let (last,): (Option<Uuid>,) =
        sqlx::query_as("SELECT max(transfer_id) FROM postings").fetch_one(db).await?;
    let successor = last.map(|last| Uuid::from_u128(last.as_u128().saturating_add(1)));
    Ok(successor.map_or(transfer_id, |successor| transfer_id.max(successor)))
}

fn account_code(account: Account) -> (&'static str, Uuid) {
    match account {
        Account::User(user_id) => ("USER", user_id),
        Account::Till => ("TILL", Uuid::nil()),
        Account::Sales => ("SALES", Uuid::nil()),
    }
}

fn kind(row: &SqliteRow) -> Result<Kind, sqlx::Error> {
    match row.try_get("kind")? {
        "DEPOSIT" => Ok(Kind::Deposit),
        "CHARGE" => Ok(Kind::Charge),
        "REFUND" => Ok(Kind::Refund),
        other => Err(sqlx::Error::Decode(format!("{other:?} is no kind").into())),
    }
}

fn kind_code(kind: Kind) -> &'static str {
    match kind {
        Kind::Deposit => "DEPOSIT",
        Kind::Charge => "CHARGE",
        Kind::Refund => "REFUND",
    }
}

fn state(row: &SqliteRow) -> Result<State, sqlx::Error> {
    match row.try_get("state")? {
        "CHARGED" => Ok(State::Charged),
        "REFUNDED" => Ok(State::Refunded),
        other => Err(sqlx::Error::Decode(format!("{other:?} is no state").into())),
    }
}

fn state_code(state: State) -> &'static str {
    match state {
        State::Charged => "CHARGED",
        State::Refunded => "REFUNDED",
    }
}

impl FromRow<'_, SqliteRow> for Entry {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let kind = kind(row)?;
        let cause_id = row.try_get("cause_id")?;
        let minor_units = row.try_get("amount_minor_units")?;
        Ok(Self {
            id: row.try_get("transfer_id")?,
            user_id: row.try_get("user_id")?,
            kind,
            amount: Money { currency: currency(row)?, minor_units },
            purchase_id: (kind != Kind::Deposit).then_some(cause_id),
            create_time: Timestamp::from_micros(row.try_get("create_time")?),
        })
    }
}

impl FromRow<'_, SqliteRow> for Payment {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let paid = match row.try_get("user_id")? {
            Some(user_id) => {
                let minor_units = row.try_get("amount_minor_units")?;
                Some(Paid { user_id, amount: Money { currency: currency(row)?, minor_units } })
            }
            None => None,
        };
        Ok(Self {
            purchase_id: row.try_get("purchase_id")?,
            state: state(row)?,
            paid,
            not_after: Timestamp::from_micros(row.try_get("not_after")?),
            create_time: Timestamp::from_micros(row.try_get("create_time")?),
        })
    }
}

impl FromRow<'_, SqliteRow> for Sum {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            currency: currency(row)?,
            postings: row.try_get("postings")?,
            balances: row.try_get("balances")?,
            deposited: row.try_get("deposited")?,
            captured: row.try_get("captured")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for AuditedPayment {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            purchase_id: row.try_get("purchase_id")?,
            currency_code: row.try_get("currency_code")?,
            captured_minor_units: row.try_get("captured_minor_units")?,
            refunded_minor_units: row.try_get("refunded_minor_units")?,
        })
    }
}
