//! The stock on `SQLite`. Decisions are [`stock`]'s; the conditions in the SQL and the
//! CHECKs below them hold even if it erred.

use std::collections::HashMap;

use futures::FutureExt;
use service_runtime::{Page, Paged, Timestamp};
use sqlx::{FromRow, Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{SWEEP, Sqlite, money};
use crate::{
    error::Error,
    stock::{
        self, Change, Decision, Item, Level, Offer, RETENTION, Refusal, Reservation,
        ReserveRequest, State,
    },
    store::{Audit, AuditedReservation, Restock, ShelfLevel, Stock},
};

impl Stock for Sqlite {
    async fn restock(&self, restock: Restock, now: Timestamp) -> Result<ShelfLevel, Error> {
        let Restock { key, product_id, quantity } = restock;
        self.database
            .write_once(key, now, move |db| {
                async move {
                    let level = level(db, product_id).await?;
                    let level =
                        level.ok_or(Error::ProductNotFound(product_id))?.restock(quantity)?;
                    sqlx::query(
                        "UPDATE products
                         SET available = ?, restocked = ?,
                             change = (SELECT max(change) + 1 FROM products)
                         WHERE id = ?",
                    )
                    .bind(level.available)
                    .bind(level.restocked)
                    .bind(product_id)
                    .execute(&mut *db)
                    .await?;
                    Ok(ShelfLevel { product_id, level })
                }
                .boxed()
            })
            .await
    }

    async fn reserve(&self, request: ReserveRequest, now: Timestamp) -> Result<Reservation, Error> {
        self.database
            .write(move |db| {
                async move {
                    let current = reservation(db, request.purchase_id).await?;
                    let mut offers = HashMap::with_capacity(request.items.len());
                    for item in &request.items {
                        if let Some(offer) = offer(db, item.product_id).await? {
                            offers.insert(item.product_id, offer);
                        }
                    }
                    let offers = |id| offers.get(&id).copied();
                    let decision = stock::reserve(current.as_ref(), &request, offers, now)?;
                    apply(db, decision).await
                }
                .boxed()
            })
            .await
    }

    async fn confirm(&self, purchase_id: Uuid, now: Timestamp) -> Result<Reservation, Error> {
        self.database
            .write(move |db| {
                async move {
                    let current = reservation(db, purchase_id).await?;
                    apply(db, stock::confirm(current.as_ref(), now)?).await
                }
                .boxed()
            })
            .await
    }

    async fn release(&self, purchase_id: Uuid, not_after: Timestamp) -> Result<Reservation, Error> {
        self.database
            .write(move |db| {
                async move {
                    let current = reservation(db, purchase_id).await?;
                    apply(db, stock::release(current.as_ref(), purchase_id, not_after)).await
                }
                .boxed()
            })
            .await
    }

    async fn audit(&self, page: Page) -> Result<Audit, Error> {
        self.database
            .snapshot(async |db| {
                let sums = sqlx::query(
                    "WITH held AS (
                         SELECT product_id,
                                sum(quantity) FILTER (WHERE state = 'RESERVED') AS reserved,
                                sum(quantity) FILTER (WHERE state = 'SOLD') AS sold
                         FROM reservation_items JOIN reservations USING (purchase_id)
                         GROUP BY product_id
                     )
                     SELECT count(*) AS product_count,
                            coalesce(sum(available), 0) AS available,
                            coalesce(sum(products.reserved), 0) AS reserved,
                            coalesce(sum(products.sold), 0) AS sold,
                            coalesce(sum(initial), 0) AS initial,
                            coalesce(sum(restocked), 0) AS restocked,
                            count(*) FILTER (WHERE available < 0) AS oversold_product_count,
                            count(*) FILTER (
                                WHERE available + products.reserved + products.sold
                                      <> initial + restocked
                                   OR products.reserved <> coalesce(held.reserved, 0)
                                   OR products.sold <> coalesce(held.sold, 0)
                            ) AS unbalanced_product_count
                     FROM products LEFT JOIN held ON product_id = id",
                )
                .fetch_one(&mut *db)
                .await?;
                let reservations = sqlx::query_as(
                    "SELECT purchase_id, state,
                            -- What was sold was charged, so its price is an int64.
                            coalesce(
                                sum(iif(state = 'SOLD', quantity * unit_price_minor_units, 0)), 0
                            ) AS total_minor_units,
                            coalesce(max(currency_code), '') AS currency_code
                     FROM reservations LEFT JOIN reservation_items USING (purchase_id)
                     WHERE purchase_id > ?
                     GROUP BY purchase_id ORDER BY purchase_id LIMIT ?",
                )
                .bind(page.after_bytes())
                .bind(page.size + 1)
                .fetch_all(&mut *db)
                .await?;
                Ok(Audit {
                    product_count: sums.try_get("product_count")?,
                    total: Level::from_row(&sums)?,
                    oversold_product_count: sums.try_get("oversold_product_count")?,
                    unbalanced_product_count: sums.try_get("unbalanced_product_count")?,
                    reservations: Paged::from_surplus(
                        reservations,
                        page.size,
                        |reservation: &AuditedReservation| reservation.purchase_id,
                    ),
                })
            })
            .await
    }
}

/// Puts goods back that were held too long, and forgets marks, a bounded number, and says
/// whether there may be more.
pub(super) async fn sweep(db: &mut SqliteConnection, now: Timestamp) -> Result<bool, Error> {
    let due: Vec<(Uuid,)> = sqlx::query_as(
        "SELECT purchase_id FROM reservations
         WHERE (state = 'RESERVED' AND not_after < ?)
            OR (state = 'RELEASED' AND not_after < ?) LIMIT ?",
    )
    .bind(now.as_micros())
    .bind(now.saturating_sub(RETENTION).as_micros())
    .bind(SWEEP)
    .fetch_all(&mut *db)
    .await?;
    let may_be_more = due.len() >= SWEEP.into();
    for (purchase_id,) in due {
        let Some(current) = reservation(db, purchase_id).await? else { continue };
        if let Some(decision) = stock::expire(&current, now) {
            apply(db, decision).await?;
        } else if current.is_collectable(now) {
            sqlx::query("DELETE FROM reservations WHERE purchase_id = ?")
                .bind(purchase_id)
                .execute(&mut *db)
                .await?;
        }
    }
    Ok(may_be_more)
}

async fn level(db: &mut SqliteConnection, product_id: Uuid) -> Result<Option<Level>, sqlx::Error> {
    sqlx::query_as(
        "SELECT available, reserved, sold, initial, restocked FROM products
         WHERE id = ? AND delete_time IS NULL",
    )
    .bind(product_id)
    .fetch_optional(db)
    .await
}

async fn offer(db: &mut SqliteConnection, product_id: Uuid) -> Result<Option<Offer>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT price_minor_units, currency_code, available FROM products
         WHERE id = ? AND delete_time IS NULL",
    )
    .bind(product_id)
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let price = money(&row, "price_minor_units")?;
        Ok(Offer { price, available: row.try_get("available")? })
    })
    .transpose()
}

async fn reservation(
    db: &mut SqliteConnection,
    purchase_id: Uuid,
) -> Result<Option<Reservation>, sqlx::Error> {
    let row = sqlx::query("SELECT state, not_after FROM reservations WHERE purchase_id = ?")
        .bind(purchase_id)
        .fetch_optional(&mut *db)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let items = sqlx::query_as(
        "SELECT product_id, quantity, unit_price_minor_units, currency_code
         FROM reservation_items WHERE purchase_id = ? ORDER BY line",
    )
    .bind(purchase_id)
    .fetch_all(db)
    .await?;
    Ok(Some(Reservation {
        purchase_id,
        state: state(&row)?,
        items,
        not_after: Timestamp::from_micros(row.try_get("not_after")?),
    }))
}

/// Writes what was decided, in the transaction that it was decided in.
async fn apply(db: &mut SqliteConnection, decision: Decision) -> Result<Reservation, Error> {
    let (reservation, changes) = match decision {
        Decision::OnRecord(reservation) => return Ok(reservation),
        Decision::Write { reservation, changes } => (reservation, changes),
    };
    for Change { product_id, available, reserved, sold } in changes {
        // No reader sees what is held and sold, nor a product that is deleted: that is no
        // change to tell of.
        let moved = sqlx::query(if available == 0 {
            "UPDATE products SET reserved = reserved + ?3, sold = sold + ?4 WHERE id = ?1"
        } else {
            "UPDATE products
             SET available = available + ?2, reserved = reserved + ?3, sold = sold + ?4,
                 change = iif(delete_time IS NULL, (SELECT max(change) + 1 FROM products), change)
             WHERE id = ?1 AND available >= -?2"
        })
        .bind(product_id)
        .bind(available)
        .bind(reserved)
        .bind(sold)
        .execute(&mut *db)
        .await?;
        if moved.rows_affected() == 0 {
            return Err(Refusal::OutOfStock(product_id).into());
        }
    }
    sqlx::query(
        "INSERT INTO reservations (purchase_id, state, not_after) VALUES (?, ?, ?)
         ON CONFLICT (purchase_id) DO UPDATE SET state = excluded.state",
    )
    .bind(reservation.purchase_id)
    .bind(state_code(reservation.state))
    .bind(reservation.not_after.as_micros())
    .execute(&mut *db)
    .await?;
    for (line, item) in (0_i64..).zip(&reservation.items) {
        // Goods and prices are locked when they are first reserved.
        sqlx::query(
            "INSERT INTO reservation_items
                 (purchase_id, line, product_id, quantity, unit_price_minor_units, currency_code)
             VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(reservation.purchase_id)
        .bind(line)
        .bind(item.product_id)
        .bind(item.quantity)
        .bind(item.unit_price.minor_units)
        .bind(item.unit_price.currency.as_str())
        .execute(&mut *db)
        .await?;
    }
    Ok(reservation)
}

fn state(row: &SqliteRow) -> Result<State, sqlx::Error> {
    match row.try_get("state")? {
        "RESERVED" => Ok(State::Reserved),
        "SOLD" => Ok(State::Sold),
        "RELEASED" => Ok(State::Released),
        other => Err(sqlx::Error::Decode(format!("{other:?} is no state").into())),
    }
}

fn state_code(state: State) -> &'static str {
    match state {
        State::Reserved => "RESERVED",
        State::Sold => "SOLD",
        State::Released => "RELEASED",
    }
}

impl FromRow<'_, SqliteRow> for Level {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            available: row.try_get("available")?,
            reserved: row.try_get("reserved")?,
            sold: row.try_get("sold")?,
            initial: row.try_get("initial")?,
            restocked: row.try_get("restocked")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for Item {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            product_id: row.try_get("product_id")?,
            quantity: row.try_get("quantity")?,
            unit_price: money(row, "unit_price_minor_units")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for AuditedReservation {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            purchase_id: row.try_get("purchase_id")?,
            state: state(row)?,
            total_minor_units: row.try_get("total_minor_units")?,
            currency_code: row.try_get("currency_code")?,
        })
    }
}
