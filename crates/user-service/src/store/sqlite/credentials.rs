//! Sessions, API keys and signing keys on `SQLite`. Decisions are those of [`session`],
//! [`api_key`] and [`signing`](crate::signing), taken in the transaction that writes them.

use futures::FutureExt;
use service_runtime::{Actor, Page, Paged, Role, Timestamp};
use sqlx::{FromRow, Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    SWEEP, Sqlite,
    users::{password, role, time},
};
use crate::{
    api_key::{self, ApiKey},
    error::Error,
    password::PasswordHash,
    secret::{Digest, RefreshDigest},
    session::{Decision, Session},
    signing::{Key, Keys, PrivateKey},
    store::{Credentials, SignedIn},
    user::{self, Email},
};

impl Credentials for Sqlite {
    async fn password_by_email(
        &self,
        email: &Email,
    ) -> Result<Option<(Uuid, PasswordHash)>, Error> {
        let folded = email.folded();
        let row = self.0.read(async |db| {
            sqlx::query(
                "SELECT id, password FROM users WHERE folded_email = ? AND delete_time IS NULL",
            )
            .bind(folded)
            .fetch_optional(db)
            .await
        });
        let Some(row) = row.await? else { return Ok(None) };
        let id = row.try_get("id")?;
        Ok(password(&row)?.map(|password| (id, password)))
    }

    async fn password(&self, user_id: Uuid) -> Result<Option<PasswordHash>, Error> {
        let row = self.0.read(async |db| {
            sqlx::query("SELECT password FROM users WHERE id = ?")
                .bind(user_id)
                .fetch_optional(db)
                .await
        });
        let row = row.await?;
        Ok(row.as_ref().map(password).transpose()?.flatten())
    }

    async fn begin_session(
        &self,
        session: Session,
        password: PasswordHash,
    ) -> Result<SignedIn, Error> {
        self.0
            .write(move |db| {
                async move {
                    // A user who is deleted has no password.
                    let row = sqlx::query("SELECT role FROM users WHERE id = ? AND password = ?")
                        .bind(session.user_id)
                        .bind(password.as_str())
                        .fetch_optional(&mut *db)
                        .await?;
                    let role = role(&row.ok_or(Error::SignInFailed)?)?;
                    write(db, &session).await?;
                    let Session { user_id, token_expire_time, .. } = session;
                    Ok(SignedIn { user_id, role, token_expire_time })
                }
                .boxed()
            })
            .await
    }

    async fn refresh(
        &self,
        shown: RefreshDigest,
        next: Digest,
        now: Timestamp,
    ) -> Result<SignedIn, Error> {
        // A no may end the session, and must not undo that.
        self.0.write(move |db| refresh(db, shown, next, now).boxed()).await?
    }

    async fn create_api_key(
        &self,
        api_key: ApiKey,
        actor: Actor,
        digest: Digest,
    ) -> Result<ApiKey, Error> {
        self.0
            .write(move |db| {
                async move {
                    let user_id = api_key.user_id;
                    let role = role_of(db, user_id).await?.ok_or(Error::UserNotFound(user_id))?;
                    user::admit_to_credentials(actor, user_id, role)?;
                    let (count,): (i64,) = sqlx::query_as(
                        "SELECT count(*) FROM api_keys WHERE user_id = ? AND revoke_time IS NULL
                             AND (expire_time IS NULL OR expire_time > ?)",
                    )
                    .bind(user_id)
                    .bind(api_key.create_time.as_micros())
                    .fetch_one(&mut *db)
                    .await?;
                    if count >= api_key::MOST_PER_USER {
                        return Err(Error::TooManyApiKeys);
                    }
                    sqlx::query(
                        "INSERT INTO api_keys (
                             id, digest, user_id, display_name, create_time, expire_time
                         ) VALUES (?, ?, ?, ?, ?, ?)",
                    )
                    .bind(api_key.id)
                    .bind(digest.as_slice())
                    .bind(user_id)
                    .bind(&api_key.display_name)
                    .bind(api_key.create_time.as_micros())
                    .bind(api_key.expire_time.map(Timestamp::as_micros))
                    .execute(db)
                    .await?;
                    Ok(api_key)
                }
                .boxed()
            })
            .await
    }

    async fn list_api_keys(&self, user_id: Uuid, page: Page) -> Result<Paged<ApiKey>, Error> {
        let rows = self.0.read(async |db| {
            sqlx::query_as(
                "SELECT * FROM api_keys WHERE user_id = ? AND id > ? ORDER BY id LIMIT ?",
            )
            .bind(user_id)
            .bind(page.after_bytes())
            .bind(page.size + 1)
            .fetch_all(db)
            .await
        });
        Ok(Paged::from_surplus(rows.await?, page.size, |api_key: &ApiKey| api_key.id))
    }

    async fn revoke_api_key(
        &self,
        id: Uuid,
        actor: Actor,
        now: Timestamp,
    ) -> Result<ApiKey, Error> {
        self.0
            .write(move |db| {
                async move {
                    let api_key: Option<ApiKey> =
                        sqlx::query_as("SELECT * FROM api_keys WHERE id = ?")
                            .bind(id)
                            .fetch_optional(&mut *db)
                            .await?;
                    let api_key = api_key
                        .filter(|api_key| actor.admit(api_key.user_id).is_ok())
                        .ok_or(Error::ApiKeyNotFound(id))?
                        .revoke(now);
                    sqlx::query("UPDATE api_keys SET revoke_time = ? WHERE id = ?")
                        .bind(api_key.revoke_time.map(Timestamp::as_micros))
                        .bind(id)
                        .execute(db)
                        .await?;
                    Ok(api_key)
                }
                .boxed()
            })
            .await
    }

    async fn user_of_api_key(&self, digest: Digest, now: Timestamp) -> Result<(Uuid, Role), Error> {
        let row = self.0.read(async |db| {
            sqlx::query(
                "SELECT api_keys.*, role FROM api_keys JOIN users ON users.id = user_id
                 WHERE digest = ? AND delete_time IS NULL",
            )
            .bind(digest.as_slice())
            .fetch_optional(db)
            .await
        });
        let row = row.await?.ok_or(Error::ApiKeyInvalid)?;
        let api_key = ApiKey::from_row(&row)?;
        if api_key.is_valid(now) {
            Ok((api_key.user_id, role(&row)?))
        } else {
            Err(Error::ApiKeyInvalid)
        }
    }

    async fn signing_keys(&self) -> Result<Keys, Error> {
        Ok(self.0.read(async |db| signing_keys(db).await).await?)
    }

    async fn rotate_signing_keys(
        &self,
        id: Uuid,
        private_key: PrivateKey,
        now: Timestamp,
    ) -> Result<Keys, Error> {
        self.0
            .write(move |db| {
                async move {
                    let keys = signing_keys(db).await?;
                    for key in keys.over(now) {
                        sqlx::query("DELETE FROM signing_keys WHERE id = ?")
                            .bind(key.id)
                            .execute(&mut *db)
                            .await?;
                    }
                    if let Some(sign_time) = keys.due(now) {
                        sqlx::query(
                            "INSERT INTO signing_keys (id, private_key, sign_time)
                             VALUES (?, ?, ?)",
                        )
                        .bind(id)
                        .bind(private_key.0)
                        .bind(sign_time.as_micros())
                        .execute(&mut *db)
                        .await?;
                    }
                    Ok(signing_keys(db).await?)
                }
                .boxed()
            })
            .await
    }
}

async fn refresh(
    db: &mut SqliteConnection,
    shown: RefreshDigest,
    next: Digest,
    now: Timestamp,
) -> Result<Result<SignedIn, Error>, Error> {
    let session: Option<Session> = sqlx::query_as("SELECT * FROM sessions WHERE id = ?")
        .bind(shown.session.as_slice())
        .fetch_optional(&mut *db)
        .await?;
    let Some(session) = session else { return Ok(Err(Error::RefreshTokenInvalid)) };
    match session.show(shown.token, next, now) {
        Decision::Refuse => Ok(Err(Error::RefreshTokenInvalid)),
        Decision::End => {
            sqlx::query("DELETE FROM sessions WHERE id = ?")
                .bind(session.id.as_slice())
                .execute(db)
                .await?;
            Ok(Err(Error::RefreshTokenReused(session.user_id)))
        }
        Decision::GoOn(session) => {
            write(db, &session).await?;
            let Session { user_id, token_expire_time, .. } = session;
            let role = role_of(db, user_id).await?.ok_or(Error::UserNotFound(user_id))?;
            Ok(Ok(SignedIn { user_id, role, token_expire_time }))
        }
    }
}

/// Forgets sessions that nobody can go on with, a bounded number at once, and says whether
/// there may be more.
pub(super) async fn forget_sessions(
    db: &mut SqliteConnection,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let forgotten = sqlx::query(
        "DELETE FROM sessions WHERE id IN (
             SELECT id FROM sessions WHERE token_expire_time <= ? LIMIT ?
         )",
    )
    .bind(now.as_micros())
    .bind(SWEEP)
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected() >= SWEEP.into())
}

/// Forgets keys that have not been valid for long, a bounded number at once, and says
/// whether there may be more.
pub(super) async fn forget_api_keys(
    db: &mut SqliteConnection,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let forgotten = sqlx::query(
        "DELETE FROM api_keys WHERE id IN (
             SELECT id FROM api_keys WHERE revoke_time < ?1 OR expire_time < ?1 LIMIT ?2
         )",
    )
    .bind(now.saturating_sub(api_key::RETENTION).as_micros())
    .bind(SWEEP)
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected() >= SWEEP.into())
}

/// Ends all that a user is signed in with.
pub(super) async fn end_sessions(
    db: &mut SqliteConnection,
    user_id: Uuid,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM sessions WHERE user_id = ?").bind(user_id).execute(db).await?;
    Ok(())
}

/// Revokes all keys of a user.
pub(super) async fn revoke_api_keys(
    db: &mut SqliteConnection,
    user_id: Uuid,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE api_keys SET revoke_time = ? WHERE user_id = ? AND revoke_time IS NULL")
        .bind(now.as_micros())
        .bind(user_id)
        .execute(db)
        .await?;
    Ok(())
}

/// Puts a session on record, whether new or not.
async fn write(db: &mut SqliteConnection, session: &Session) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO sessions (id, user_id, expire_time, token, token_expire_time)
         VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET
             token = excluded.token,
             token_expire_time = excluded.token_expire_time",
    )
    .bind(session.id.as_slice())
    .bind(session.user_id)
    .bind(session.expire_time.as_micros())
    .bind(session.token.as_slice())
    .bind(session.token_expire_time.as_micros())
    .execute(db)
    .await?;
    Ok(())
}

/// What a user may do; none if there is no such user, or no more.
async fn role_of(db: &mut SqliteConnection, user_id: Uuid) -> Result<Option<Role>, sqlx::Error> {
    sqlx::query("SELECT role FROM users WHERE id = ? AND delete_time IS NULL")
        .bind(user_id)
        .fetch_optional(db)
        .await?
        .as_ref()
        .map(role)
        .transpose()
}

async fn signing_keys(db: &mut SqliteConnection) -> Result<Keys, sqlx::Error> {
    let keys: Vec<Key> = sqlx::query_as("SELECT * FROM signing_keys").fetch_all(db).await?;
    Ok(keys.into_iter().collect())
}

fn digest(row: &SqliteRow, column: &str) -> Result<Digest, sqlx::Error> {
    let digest = row.try_get::<&[u8], _>(column)?.try_into();
    digest.map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

impl FromRow<'_, SqliteRow> for Session {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: digest(row, "id")?,
            user_id: row.try_get("user_id")?,
            expire_time: Timestamp::from_micros(row.try_get("expire_time")?),
            token: digest(row, "token")?,
            token_expire_time: Timestamp::from_micros(row.try_get("token_expire_time")?),
        })
    }
}

impl FromRow<'_, SqliteRow> for ApiKey {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            user_id: row.try_get("user_id")?,
            display_name: row.try_get("display_name")?,
            create_time: Timestamp::from_micros(row.try_get("create_time")?),
            expire_time: time(row, "expire_time")?,
            revoke_time: time(row, "revoke_time")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for Key {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            private_key: PrivateKey(row.try_get("private_key")?),
            sign_time: Timestamp::from_micros(row.try_get("sign_time")?),
        })
    }
}
