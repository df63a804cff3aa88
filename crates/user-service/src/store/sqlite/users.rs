//! The users on `SQLite`. What becomes of one is decided by [`User`].

use futures::FutureExt;
use service_runtime::{Actor, Page, Paged, RequestKey, Role, Timestamp};
use sqlx::{FromRow, Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{Sqlite, credentials};
use crate::{
    error::Error,
    password::PasswordHash,
    store::Users,
    user::{Email, Profile, Update, User},
};

impl Users for Sqlite {
    async fn create(
        &self,
        key: RequestKey,
        id: Uuid,
        profile: Profile,
        password: Option<PasswordHash>,
        now: Timestamp,
    ) -> Result<User, Error> {
        let user = User {
            id,
            profile,
            role: Role::Customer,
            revision: 1,
            create_time: now,
            update_time: now,
            delete_time: None,
        };
        self.0
            .write_once(key, now, move |db| {
                async move {
                    write(db, &user, password.as_ref()).await?;
                    Ok(user)
                }
                .boxed()
            })
            .await
    }

    async fn get(&self, id: Uuid) -> Result<Option<User>, Error> {
        self.0
            .read(async |db| {
                let user =
                    sqlx::query_as("SELECT * FROM users WHERE id = ? AND delete_time IS NULL")
                        .bind(id)
                        .fetch_optional(db)
                        .await?;
                Ok(user)
            })
            .await
    }

    async fn list(&self, page: Page, show_deleted: bool) -> Result<Paged<User>, Error> {
        let rows = self.0.read(async |db| {
            sqlx::query_as(
                "SELECT * FROM users WHERE id > ? AND (delete_time IS NULL OR ?)
                 ORDER BY id LIMIT ?",
            )
            .bind(page.after_bytes())
            .bind(show_deleted)
            .bind(page.size + 1)
            .fetch_all(db)
            .await
        });
        Ok(Paged::from_surplus(rows.await?, page.size, |user: &User| user.id))
    }

    async fn update(
        &self,
        key: RequestKey,
        actor: Actor,
        id: Uuid,
        update: Update,
        now: Timestamp,
    ) -> Result<User, Error> {
        self.0
            .write_once(key, now, move |db| {
                async move {
                    let (user, password) = on_record(db, id)
                        .await?
                        .filter(|(user, _)| user.delete_time.is_none())
                        .ok_or(Error::UserNotFound(id))?;
                    let user = user.update(actor, &update, password.as_ref(), now)?;
                    let password = match update.password {
                        Some(new) => {
                            credentials::end_sessions(db, id).await?;
                            Some(new.hash)
                        }
                        None => password,
                    };
                    write(db, &user, password.as_ref()).await?;
                    Ok(user)
                }
                .boxed()
            })
            .await
    }

    async fn delete(&self, id: Uuid, etag: Option<String>, now: Timestamp) -> Result<User, Error> {
        self.0
            .write(move |db| {
                async move {
                    let (user, _) = on_record(db, id).await?.ok_or(Error::UserNotFound(id))?;
                    let user = user.delete(etag.as_deref(), now)?;
                    credentials::end_sessions(db, id).await?;
                    credentials::revoke_api_keys(db, id, now).await?;
                    write(db, &user, None).await?;
                    Ok(user)
                }
                .boxed()
            })
            .await
    }
}

async fn on_record(
    db: &mut SqliteConnection,
    id: Uuid,
) -> Result<Option<(User, Option<PasswordHash>)>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM users WHERE id = ?").bind(id).fetch_optional(db).await?;
    row.map(|row| Ok((User::from_row(&row)?, password(&row)?))).transpose()
}

/// Puts a user on record, whether new or not.
async fn write(
    db: &mut SqliteConnection,
    user: &User,
    password: Option<&PasswordHash>,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO users (
             id, email, folded_email, display_name, role, password,
             revision, create_time, update_time, delete_time
         ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET
             email = excluded.email,
             folded_email = excluded.folded_email,
             display_name = excluded.display_name,
             role = excluded.role,
             password = excluded.password,
             revision = excluded.revision,
             update_time = excluded.update_time,
             delete_time = excluded.delete_time",
    )
    .bind(user.id)
    .bind(user.profile.email.as_str())
    .bind(user.profile.email.folded())
    .bind(&user.profile.display_name)
    .bind(role_code(user.role))
    .bind(password.map(PasswordHash::as_str))
    .bind(user.revision)
    .bind(user.create_time.as_micros())
    .bind(user.update_time.as_micros())
    .bind(user.delete_time.map(Timestamp::as_micros))
    .execute(db)
    .await
    .map_err(|error| match error {
        sqlx::Error::Database(error) if error.is_unique_violation() => Error::EmailTaken,
        error => error.into(),
    })?;
    Ok(())
}

pub(super) fn password(row: &SqliteRow) -> Result<Option<PasswordHash>, sqlx::Error> {
    Ok(row.try_get::<Option<String>, _>("password")?.map(PasswordHash::on_record))
}

pub(super) fn role(row: &SqliteRow) -> Result<Role, sqlx::Error> {
    match row.try_get("role")? {
        "CUSTOMER" => Ok(Role::Customer),
        "STAFF" => Ok(Role::Staff),
        other => Err(sqlx::Error::Decode(format!("{other:?} is no role").into())),
    }
}

fn role_code(role: Role) -> &'static str {
    match role {
        Role::Customer => "CUSTOMER",
        Role::Staff => "STAFF",
    }
}

/// A column that holds a time, or nothing.
pub(super) fn time(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_micros))
}

impl FromRow<'_, SqliteRow> for User {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            profile: Profile {
                email: Email::on_record(row.try_get("email")?),
                display_name: row.try_get("display_name")?,
            },
            role: role(row)?,
            revision: row.try_get("revision")?,
            create_time: Timestamp::from_micros(row.try_get("create_time")?),
            update_time: Timestamp::from_micros(row.try_get("update_time")?),
            delete_time: time(row, "delete_time")?,
        })
    }
}
