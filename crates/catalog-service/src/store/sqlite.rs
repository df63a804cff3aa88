//! The store on SQLite: one file, and a module for each part of what it keeps.

mod products;
mod stock;

use std::path::Path;

use futures::FutureExt;
use service_runtime::{
    Money, Timestamp,
    sqlite::{Database, OpenError, Step},
};
use sqlx::{Row, sqlite::SqliteRow};

use super::{REQUEST_RETENTION, Store};
use crate::{error::Error, stock::RETENTION};

const SCHEMA: &[Step] = &[(
    1,
    "products and reservations",
    include_str!("../../migrations/sqlite/0001_products_and_reservations.sql"),
)];

/// How many rows of each table a sweep handles at most.
const SWEEP: u32 = 500;

/// Everything in one file.
#[derive(Clone, Debug)]
pub struct Sqlite(Database);

impl Sqlite {
    /// Opens the file, makes it if there is none, and brings its schema up to date.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Database::open(path, SCHEMA).await.map(Self)
    }
}

impl Store for Sqlite {
    async fn sweep(&self, now: Timestamp) -> Result<(), Error> {
        let [marks, requests] = [RETENTION, REQUEST_RETENTION]
            .map(|retention| now.saturating_sub(retention).as_micros());
        let is_due = self.0.read(async |db| {
            sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (
                     SELECT 1 FROM reservations WHERE state = 'RESERVED' AND not_after < ?
                 ) OR EXISTS (
                     SELECT 1 FROM reservations WHERE state = 'RELEASED' AND not_after < ?
                 ) OR EXISTS (SELECT 1 FROM requests WHERE create_time < ?)",
            )
            .bind(now.as_micros())
            .bind(marks)
            .bind(requests)
            .fetch_one(db)
            .await
        });
        if !is_due.await? {
            return Ok(());
        }
        self.0
            .write(move |db| {
                async move {
                    stock::sweep(db, now).await?;
                    sqlx::query(
                        "DELETE FROM requests WHERE (principal, request_id) IN (
                             SELECT principal, request_id FROM requests
                             WHERE create_time < ? LIMIT ?
                         )",
                    )
                    .bind(requests)
                    .bind(SWEEP)
                    .execute(db)
                    .await?;
                    Ok(())
                }
                .boxed()
            })
            .await
    }
}

fn money(row: &SqliteRow, minor_units: &str) -> Result<Money, sqlx::Error> {
    let currency = row.try_get::<&str, _>("currency_code")?.parse();
    Ok(Money {
        currency: currency.map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        minor_units: row.try_get(minor_units)?,
    })
}
