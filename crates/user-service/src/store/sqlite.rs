//! The store on SQLite: one file, and a module for each part of what it keeps.

mod credentials;
mod ledger;
mod users;

use std::path::Path;

use futures::FutureExt;
use service_runtime::{
    Timestamp,
    sqlite::{Database, OpenError, REQUEST_RETENTION, Step, forget_requests},
};

use super::Store;
use crate::{api_key, error::Error, payment};

const SCHEMA: &[Step] = &[
    (1, "users and ledger", include_str!("../../migrations/sqlite/0001_users_and_ledger.sql")),
    (2, "sessions and keys", include_str!("../../migrations/sqlite/0002_sessions_and_keys.sql")),
];

/// How many rows of each table a sweep forgets at most.
const SWEEP: u16 = 500;

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
    async fn sweep(&self, now: Timestamp) -> Result<bool, Error> {
        let [marks, requests, api_keys] =
            [payment::RETENTION, REQUEST_RETENTION, api_key::RETENTION]
                .map(|retention| now.saturating_sub(retention).as_micros());
        let is_due = self.0.read(async |db| {
            sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (SELECT 1 FROM payments WHERE user_id IS NULL AND not_after < ?1)
                     OR EXISTS (SELECT 1 FROM requests WHERE create_time < ?2)
                     OR EXISTS (SELECT 1 FROM sessions WHERE token_expire_time <= ?3)
                     OR EXISTS (SELECT 1 FROM api_keys WHERE revoke_time < ?4)
                     OR EXISTS (SELECT 1 FROM api_keys WHERE expire_time < ?4)",
            )
            .bind(marks)
            .bind(requests)
            .bind(now.as_micros())
            .bind(api_keys)
            .fetch_one(db)
            .await
        });
        if !is_due.await? {
            return Ok(false);
        }
        self.0
            .write(move |db| {
                async move {
                    let more = [
                        ledger::forget_marks(db, now).await?,
                        forget_requests(db, now).await?,
                        credentials::forget_sessions(db, now).await?,
                        credentials::forget_api_keys(db, now).await?,
                    ];
                    Ok(more.contains(&true))
                }
                .boxed()
            })
            .await
    }
}
