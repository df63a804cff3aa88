//! The store on SQLite: one file, and a module for each part of what it keeps.

mod products;
mod stock;

use std::{path::Path, sync::Arc};

use futures::FutureExt;
use service_runtime::{
    Money, Timestamp,
    sqlite::{Database, OpenError, REQUEST_RETENTION, Step, currency, forget_requests},
};
use sqlx::{Row, sqlite::SqliteRow};
use tokio::sync::Mutex;
use uuid::Uuid;

use self::products::LastChange;
use super::Store;
use crate::{error::Error, stock::RETENTION};

const SCHEMA: &[Step] = &[
    (
        1,
        "products and reservations",
        include_str!("../../migrations/sqlite/0001_products_and_reservations.sql"),
    ),
    (2, "identity", include_str!("../../migrations/sqlite/0002_identity.sql")),
];

/// How many rows of each table a sweep handles at most.
const SWEEP: u16 = 500;

/// Everything in one file.
#[derive(Clone, Debug)]
pub struct Sqlite {
    database: Database,
    identity: Uuid,
    last_change: Arc<Mutex<LastChange>>,
}

impl Sqlite {
    /// Opens the file, makes it if there is none, and brings its schema up to date.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let database = Database::open(path, SCHEMA).await?;
        let identity = sqlx::query_scalar("SELECT id FROM identity");
        let identity = database.read(async |db| identity.fetch_one(db).await).await;
        let identity = identity.map_err(|error| OpenError::Open(path.to_owned(), error))?;
        let last_change = Arc::new(Mutex::new(LastChange::unknown(&database)));
        Ok(Self { database, identity, last_change })
    }
}

impl Store for Sqlite {
    async fn sweep(&self, now: Timestamp) -> Result<bool, Error> {
        let [marks, requests] = [RETENTION, REQUEST_RETENTION]
            .map(|retention| now.saturating_sub(retention).as_micros());
        let is_due = self.database.read(async |db| {
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
            return Ok(false);
        }
        self.database
            .write(move |db| {
                async move { Ok(stock::sweep(db, now).await? | forget_requests(db, now).await?) }
                    .boxed()
            })
            .await
    }

    fn identity(&self) -> Uuid {
        self.identity
    }
}

fn money(row: &SqliteRow, minor_units: &str) -> Result<Money, sqlx::Error> {
    Ok(Money { currency: currency(row)?, minor_units: row.try_get(minor_units)? })
}
