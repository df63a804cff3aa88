//! The purchases on `SQLite`. Every change of one is one compare-and-set on its row, and
//! appends its event in the same transaction.

use std::time::Duration;

use futures::FutureExt;
use service_runtime::{Page, Paged, RequestKey, Timestamp, sqlite::currency};
use sqlx::{FromRow, Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::Sqlite;
use crate::{
    error::Error,
    purchase::{Event, FailureReason, Order, Ordered, Purchase, State, Transition},
    store::{Audited, Draft, Purchases, Work},
};

impl Purchases for Sqlite {
    async fn create(&self, draft: Draft, now: Timestamp) -> Result<Uuid, Error> {
        self.0.write(move |db| async move { find_or_insert(db, &draft, now).await }.boxed()).await
    }

    async fn get(&self, id: Uuid) -> Result<Option<Purchase>, Error> {
        self.0
            .snapshot(async |db| {
                let row = sqlx::query("SELECT * FROM purchases WHERE id = ?")
                    .bind(id)
                    .fetch_optional(&mut *db)
                    .await?;
                match row {
                    Some(row) => Ok(Some(purchase(db, &row).await?)),
                    None => Ok(None),
                }
            })
            .await
    }

    async fn list(&self, user_id: Uuid, page: Page) -> Result<Paged<Purchase>, Error> {
        self.0
            .snapshot(async |db| {
                let rows = sqlx::query(
                    "SELECT * FROM purchases WHERE user_id = ? AND id > ? ORDER BY id LIMIT ?",
                )
                .bind(user_id)
                .bind(page.after_bytes())
                .bind(page.size + 1)
                .fetch_all(&mut *db)
                .await?;
                let mut purchases = Vec::with_capacity(rows.len());
                for row in rows {
                    purchases.push(purchase(db, &row).await?);
                }
                Ok(Paged::from_surplus(purchases, page.size, |purchase| purchase.id))
            })
            .await
    }

    async fn events(&self, id: Uuid, after_version: i64) -> Result<Vec<Event>, Error> {
        let events = sqlx::query_as(
            "SELECT version, state, failure_reason, total, update_time FROM purchase_events
             WHERE purchase_id = ? AND version > ? ORDER BY version",
        )
        .bind(id)
        .bind(after_version);
        Ok(self.0.read(async |db| events.fetch_all(db).await).await?)
    }

    async fn transition(
        &self,
        id: Uuid,
        transition: Transition,
        version: Option<i64>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let Transition { from, to, reason } = transition;
        self.0
            .write(move |db| {
                async move {
                    let written = sqlx::query(
                        "UPDATE purchases
                         SET state = ?1, failure_reason = coalesce(?2, failure_reason), version = version + 1,
                             update_time = ?3, attempts = 0,
                             due_time = iif(?4, ?3, due_time)
                         WHERE id = ?5 AND state = ?6 AND version = coalesce(?7, version)",
                    )
                    .bind(to.name())
                    .bind(reason.map(FailureReason::name))
                    .bind(now.as_micros())
                    // What a request decides is for a worker to claim at once; what a
                    // worker decides, it goes on with.
                    .bind(matches!(to, State::Cancelling | State::Refunding))
                    .bind(id)
                    .bind(from.name())
                    .bind(version)
                    .execute(&mut *db)
                    .await?;
                    if written.rows_affected() == 0 {
                        return Ok(false);
                    }
                    append_event(db, id).await?;
                    Ok(true)
                }
                .boxed()
            })
            .await
    }

    async fn record_total(
        &self,
        id: Uuid,
        unit_prices: Vec<i64>,
        total: i64,
        now: Timestamp,
    ) -> Result<bool, Error> {
        self.0
            .write(move |db| {
                async move {
                    let written = sqlx::query(
                        "UPDATE purchases SET total = ?, version = version + 1, update_time = ?
                         WHERE id = ? AND state = 'PENDING' AND total IS NULL",
                    )
                    .bind(total)
                    .bind(now.as_micros())
                    .bind(id)
                    .execute(&mut *db)
                    .await?;
                    if written.rows_affected() == 0 {
                        return Ok(false);
                    }
                    for (line, unit_price) in (0_i64..).zip(unit_prices) {
                        sqlx::query(
                            "UPDATE purchase_items SET unit_price = ?
                             WHERE purchase_id = ? AND line = ?",
                        )
                        .bind(unit_price)
                        .bind(id)
                        .bind(line)
                        .execute(&mut *db)
                        .await?;
                    }
                    append_event(db, id).await?;
                    Ok(true)
                }
                .boxed()
            })
            .await
    }

    async fn claim(&self, lease: Duration, limit: u32, now: Timestamp) -> Result<Vec<Work>, Error> {
        let lease_end = now.saturating_add(lease);
        // Most of the time nothing is due, which a reader can tell.
        let due = sqlx::query_as(
            "SELECT id FROM purchases
             WHERE state IN ('PENDING', 'FAILING', 'CANCELLING', 'REFUNDING')
               AND (due_time <= ? OR due_time > ?)
             ORDER BY due_time LIMIT ?",
        )
        .bind(now.as_micros())
        .bind(lease_end.as_micros())
        .bind(limit);
        let due: Vec<(Uuid,)> = self.0.read(async |db| due.fetch_all(db).await).await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        self.0
            .write(move |db| {
                async move {
                    let mut claimed = Vec::with_capacity(due.len());
                    for (id,) in due {
                        let work: Option<Work> = sqlx::query_as(
                            "UPDATE purchases SET due_time = ?1
                             WHERE id = ?2 AND (due_time <= ?3 OR due_time > ?1)
                               AND state IN ('PENDING', 'FAILING', 'CANCELLING', 'REFUNDING')
                             RETURNING id, attempts, due_time, trace_parent",
                        )
                        .bind(lease_end.as_micros())
                        .bind(id)
                        .bind(now.as_micros())
                        .fetch_optional(&mut *db)
                        .await?;
                        claimed.extend(work);
                    }
                    Ok(claimed)
                }
                .boxed()
            })
            .await
    }

    async fn retry(&self, work: &Work, due: Timestamp) -> Result<(), Error> {
        let (id, lease_end) = (work.purchase_id, work.lease_end);
        self.0
            .write(move |db| {
                async move {
                    sqlx::query(
                        "UPDATE purchases SET attempts = attempts + 1, due_time = ?
                         WHERE id = ? AND due_time = ?",
                    )
                    .bind(due.as_micros())
                    .bind(id)
                    .bind(lease_end.as_micros())
                    .execute(db)
                    .await?;
                    Ok(())
                }
                .boxed()
            })
            .await
    }

    async fn audit(&self, page: Page) -> Result<Paged<Audited>, Error> {
        self.0
            .snapshot(async |db| {
                let rows = sqlx::query(
                    "SELECT purchases.*,
                            (SELECT count(*) = purchases.version
                                AND max(version) = purchases.version
                             FROM purchase_events WHERE purchase_id = id)
                            AND purchases.state =
                            (SELECT state FROM purchase_events
                             WHERE purchase_id = id ORDER BY version DESC LIMIT 1) AS events_sound
                     FROM purchases WHERE id > ? ORDER BY id LIMIT ?",
                )
                .bind(page.after_bytes())
                .bind(page.size + 1)
                .fetch_all(&mut *db)
                .await?;
                let mut audited = Vec::with_capacity(rows.len());
                for row in rows {
                    audited.push(Audited {
                        purchase: purchase(db, &row).await?,
                        principal: row.try_get("principal")?,
                        request_id: row.try_get("request_id")?,
                        events_sound: row.try_get("events_sound")?,
                    });
                }
                Ok(Paged::from_surplus(audited, page.size, |audited| audited.purchase.id))
            })
            .await
    }
}

pub(super) async fn find_or_insert(
    db: &mut SqliteConnection,
    draft: &Draft,
    now: Timestamp,
) -> Result<Uuid, Error> {
    if let Some(id) = find(db, &draft.key).await? {
        return Ok(id);
    }
    insert(db, draft, now).await?;
    Ok(draft.id)
}

/// The purchase that a request has made already.
async fn find(db: &mut SqliteConnection, key: &RequestKey) -> Result<Option<Uuid>, Error> {
    let row: Option<(Uuid, Vec<u8>)> = sqlx::query_as(
        "SELECT id, fingerprint FROM purchases WHERE principal = ? AND request_id = ?",
    )
    .bind(&key.principal)
    .bind(key.request_id)
    .fetch_optional(db)
    .await?;
    let Some((id, fingerprint)) = row else { return Ok(None) };
    key.match_fingerprint(&fingerprint)?;
    Ok(Some(id))
}

async fn insert(db: &mut SqliteConnection, draft: &Draft, now: Timestamp) -> Result<(), Error> {
    let Draft { key, id, order, not_after, trace_parent } = draft;
    sqlx::query(
        "INSERT INTO purchases (
             id, principal, request_id, fingerprint, user_id, currency_code, not_after,
             create_time, version, state, update_time, due_time, trace_parent
         ) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, 'PENDING', ?8, ?8, ?9)",
    )
    .bind(id)
    .bind(&key.principal)
    .bind(key.request_id)
    .bind(key.fingerprint.as_slice())
    .bind(order.user_id)
    .bind(order.currency.as_str())
    .bind(not_after.as_micros())
    .bind(now.as_micros())
    .bind(trace_parent)
    .execute(&mut *db)
    .await?;
    for (line, item) in (0_i64..).zip(&order.items) {
        sqlx::query(
            "INSERT INTO purchase_items (purchase_id, line, product_id, quantity)
             VALUES (?, ?, ?, ?)",
        )
        .bind(id)
        .bind(line)
        .bind(item.product_id)
        .bind(item.quantity)
        .execute(&mut *db)
        .await?;
    }
    append_event(db, *id).await?;
    Ok(())
}

async fn append_event(db: &mut SqliteConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO purchase_events
             (purchase_id, version, state, failure_reason, total, update_time)
         SELECT id, version, state, failure_reason, total, update_time
         FROM purchases WHERE id = ?",
    )
    .bind(id)
    .execute(db)
    .await?;
    Ok(())
}

async fn purchase(db: &mut SqliteConnection, row: &SqliteRow) -> Result<Purchase, sqlx::Error> {
    let id: Uuid = row.try_get("id")?;
    let rows: Vec<(Uuid, u32, Option<i64>)> = sqlx::query_as(
        "SELECT product_id, quantity, unit_price FROM purchase_items
         WHERE purchase_id = ? ORDER BY line",
    )
    .bind(id)
    .fetch_all(db)
    .await?;
    let items = rows.iter().map(|&(product_id, quantity, _)| Ordered { product_id, quantity });
    Ok(Purchase {
        id,
        order: Order {
            user_id: row.try_get("user_id")?,
            items: items.collect(),
            currency: currency(row)?,
        },
        unit_prices: rows.iter().filter_map(|&(_, _, unit_price)| unit_price).collect(),
        not_after: Timestamp::from_micros(row.try_get("not_after")?),
        create_time: Timestamp::from_micros(row.try_get("create_time")?),
        last: Event::from_row(row)?,
    })
}

impl FromRow<'_, SqliteRow> for Event {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let unknown = |code: &str| sqlx::Error::Decode(format!("{code:?} is unknown").into());
        let state = row.try_get::<&str, _>("state")?;
        let reason = row.try_get::<Option<&str>, _>("failure_reason")?;
        Ok(Self {
            version: row.try_get("version")?,
            state: State::ALL
                .into_iter()
                .find(|known| known.name() == state)
                .ok_or_else(|| unknown(state))?,
            failure_reason: reason
                .map(|reason| {
                    FailureReason::ALL
                        .into_iter()
                        .find(|known| known.name() == reason)
                        .ok_or_else(|| unknown(reason))
                })
                .transpose()?,
            total: row.try_get("total")?,
            time: Timestamp::from_micros(row.try_get("update_time")?),
        })
    }
}

impl FromRow<'_, SqliteRow> for Work {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            purchase_id: row.try_get("id")?,
            attempts: row.try_get("attempts")?,
            lease_end: Timestamp::from_micros(row.try_get("due_time")?),
            trace_parent: row.try_get("trace_parent")?,
        })
    }
}
