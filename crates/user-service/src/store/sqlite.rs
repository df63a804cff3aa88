//! The store on SQLite: one file, and a module for each part of what it keeps.

mod credentials;
mod ledger;
mod users;

use std::path::Path;

use futures::FutureExt;
use service_runtime::{
    Timestamp,
    sqlite::{Database, OpenError, Step},
};

use super::{REQUEST_RETENTION, Store};
use crate::{error::Error, payment::RETENTION};

const SCHEMA: &[Step] = &[
    (1, "users and ledger", include_str!("../../migrations/sqlite/0001_users_and_ledger.sql")),
    (2, "sessions and keys", include_str!("../../migrations/sqlite/0002_sessions_and_keys.sql")),
];

/// How many rows of each table a sweep forgets at most.
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
                "SELECT EXISTS (SELECT 1 FROM payments WHERE user_id IS NULL AND not_after < ?)
                     OR EXISTS (SELECT 1 FROM requests WHERE create_time < ?)
                     OR EXISTS (SELECT 1 FROM refresh_tokens WHERE expire_time <= ?)",
            )
            .bind(marks)
            .bind(requests)
            .bind(now.as_micros())
            .fetch_one(db)
            .await
        });
        if !is_due.await? {
            return Ok(());
        }
        self.0
            .write(move |db| {
                async move {
                    ledger::forget_marks(db, now).await?;
                    sqlx::query(
                        "DELETE FROM requests WHERE (principal, request_id) IN (
                             SELECT principal, request_id FROM requests
                             WHERE create_time < ? LIMIT ?
                         )",
                    )
                    .bind(requests)
                    .bind(SWEEP)
                    .execute(&mut *db)
                    .await?;
                    sqlx::query(
                        "DELETE FROM refresh_tokens WHERE digest IN (
                             SELECT digest FROM refresh_tokens WHERE expire_time <= ? LIMIT ?
                         )",
                    )
                    .bind(now.as_micros())
                    .bind(SWEEP)
                    .execute(&mut *db)
                    .await?;
                    Ok(())
                }
                .boxed()
            })
            .await
    }
}
