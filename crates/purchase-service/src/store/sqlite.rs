//! The store on SQLite: one file, and a module for each part of what it keeps.

mod carts;
mod purchases;

use std::path::Path;

use futures::FutureExt;
use service_runtime::{
    Timestamp,
    sqlite::{Database, OpenError, Step},
};

use super::Store;
use crate::{cart::RETENTION, error::Error};

const SCHEMA: &[Step] = &[
    (1, "purchases", include_str!("../../migrations/sqlite/0001_purchases.sql")),
    (2, "carts", include_str!("../../migrations/sqlite/0002_carts.sql")),
];

/// How many carts a sweep forgets at most.
const SWEEP: u32 = 500;

/// Everything in one file.
#[derive(Clone, Debug)]
pub struct Sqlite(Database);

impl Sqlite {
    /// Opens the file, makes it if there is none, and brings its schema up to date.
    /// What an earlier process had claimed is due at once: the file has one process
    /// at a time, so that process is gone.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let database = Database::open(path, SCHEMA).await?;
        database
            .write(|db| {
                sqlx::query(
                    "UPDATE purchases SET due_time = 0
                     WHERE state IN ('PENDING', 'FAILING', 'CANCELLING', 'REFUNDING')",
                )
                .execute(db)
                .boxed()
            })
            .await
            .map_err(|error| OpenError::Open(path.to_owned(), error))?;
        Ok(Self(database))
    }
}

impl Store for Sqlite {
    async fn sweep(&self, now: Timestamp) -> Result<bool, Error> {
        let before = now.saturating_sub(RETENTION).as_micros();
        let is_due = self.0.read(async |db| {
            sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (SELECT 1 FROM carts WHERE purchase_id IS NULL AND update_time < ?)",
            )
            .bind(before)
            .fetch_one(db)
            .await
        });
        if !is_due.await? {
            return Ok(false);
        }
        self.0
            .write(move |db| {
                async move {
                    let forgotten = sqlx::query(
                        "DELETE FROM carts WHERE id IN (
                             SELECT id FROM carts
                             WHERE purchase_id IS NULL AND update_time < ? LIMIT ?
                         )",
                    )
                    .bind(before)
                    .bind(SWEEP)
                    .execute(db)
                    .await?;
                    Ok(forgotten.rows_affected() >= SWEEP.into())
                }
                .boxed()
            })
            .await
    }
}
