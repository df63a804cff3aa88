//! The embedded database: one file, one writer, many readers.
//!
//! `SQLite` admits one writer at a time, so all writes of a process go through one
//! task. It takes what is waiting, runs each piece in a savepoint of its own
//! and commits them together: one `fsync` for many writes. A write that was begun is
//! never cut short when its caller goes away.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Connection, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::{Reported, RequestIdReused, RequestKey, Timestamp, internal, unavailable};

const READERS: u32 = 4;
/// How many writes may share a commit.
const BATCH: usize = 64;

/// The path of a database in a folder that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseFile(PathBuf);

impl DatabaseFile {
    /// What a variable of this type takes.
    pub const FORM: &str =
        "the path of a SQLite file, made if there is none, in a folder that exists";
}

impl FromStr for DatabaseFile {
    type Err = Reported;

    fn from_str(path: &str) -> Result<Self, Reported> {
        let path = PathBuf::from(path);
        let folder = path.parent().ok_or(Reported)?;
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        if folder.is_dir() && !path.is_dir() { Ok(Self(path)) } else { Err(Reported) }
    }
}

impl AsRef<Path> for DatabaseFile {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "DATABASE_FILE {0} is in use by another process; an embedded database serves one replica"
    )]
    InUse(PathBuf),
    /// The lock beside it cannot be taken.
    #[error("DATABASE_FILE {0} cannot be locked: {1}")]
    Lock(PathBuf, io::Error),
    /// The file is no database, or cannot be read.
    #[error("DATABASE_FILE {0} cannot be opened as a SQLite database: {1}")]
    Open(PathBuf, sqlx::Error),
    /// Its schema cannot be brought up to date.
    #[error("the schema of DATABASE_FILE {0} cannot be brought up to date: {1}")]
    Migrate(PathBuf, MigrateError),
}

/// A step of a schema: its number, what it does, its SQL.
pub type Step = (i64, &'static str, &'static str);

/// An open database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    readers: SqlitePool,
    writer: mpsc::Sender<Write>,
    /// Held for as long as the database is open.
    _lock: Arc<File>,
}

impl Database {
    /// Opens a file, makes it if there is none, and brings its schema up to date.
    pub async fn open(path: impl AsRef<Path>, schema: &[Step]) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let lock = lock(path)?;
        let failed = |error| OpenError::Open(path.to_owned(), error);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An answer promises that its effect survives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(true);
        let mut writer = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        let steps = schema.iter().map(|&(version, description, sql)| {
            Migration::new(
                version,
                description.into(),
                MigrationType::Simple,
                sql.into_sql_str(),
                false,
            )
        });
        Migrator::with_migrations(steps.collect())
            .run(&mut writer)
            .await
            .map_err(|error| OpenError::Migrate(path.to_owned(), error))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_with(options.read_only(true))
            .await
            .map_err(failed)?;
        let (sender, receiver) = mpsc::channel(BATCH);
        tokio::spawn(write_all(writer, receiver));
        Ok(Self { readers, writer: sender, _lock: Arc::new(lock) })
    }

    /// Connections that only read, each seeing the last commit.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Runs `work` in a transaction of its own, as far as it can see. It is undone
    /// if it fails, and its answer is given only once it is on disk.
    pub async fn write<T, E, W>(&self, work: W) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<sqlx::Error> + Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel::<Result<T, E>>();
        let write = Write {
            work: Box::new(move |connection| {
                Box::pin(async move {
                    let outcome = work(connection).await;
                    let keep = outcome.is_ok();
                    let settle: Settle = Box::new(move |committed| {
                        // Whoever asked may have gone; the effect stands all the same.
                        let _ = reply.send(committed.map_err(E::from).and(outcome));
                    });
                    (keep, settle)
                })
            }),
        };
        self.writer.send(write).await.map_err(|_| sqlx::Error::PoolClosed)?;
        answer.await.map_err(|_| sqlx::Error::PoolClosed)?
    }

    /// [`write`](Self::write) for a request that may be sent again: a repeat gets the
    /// answer that is on record, and other parameters under the same key are refused.
    pub async fn write_once<T, E, W>(
        &self,
        key: RequestKey,
        now: Timestamp,
        work: W,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: From<sqlx::Error> + From<RequestIdReused> + Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        self.write(move |connection| {
            Box::pin(async move {
                if let Some(answer) = recall::<T, E>(connection, &key).await? {
                    return Ok(answer);
                }
                let answer = work(connection).await?;
                remember(connection, &key, &answer, now).await?;
                Ok(answer)
            })
        })
        .await
    }
}

/// The status of a call that the database failed: UNAVAILABLE if a repeat may fare
/// better, else INTERNAL.
pub fn status(error: &sqlx::Error) -> Status {
    // https://sqlite.org/rescode.html: BUSY, LOCKED, IOERR, FULL, CANTOPEN; extended
    // codes carry theirs in the low byte.
    const TRANSIENT: [i32; 5] = [5, 6, 10, 13, 14];
    let transient = match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            .is_some_and(|code| TRANSIENT.contains(&(code & 0xff))),
        _ => false,
    };
    if transient { unavailable(error) } else { internal(error) }
}

/// One process at a time: `SQLite`'s own locks would let two replicas take turns,
/// each blind to what the other keeps in memory.
fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&name)
        .map_err(|error| OpenError::Lock(name.clone(), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(OpenError::Lock(name, error)),
    }
}

/// Tells whoever asked for a write what became of it.
type Settle = Box<dyn FnOnce(Result<(), sqlx::Error>) + Send>;

type Work =
    Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, (bool, Settle)> + Send>;

struct Write {
    work: Work,
}

async fn write_all(mut connection: SqliteConnection, mut writes: mpsc::Receiver<Write>) {
    let mut batch = Vec::with_capacity(BATCH);
    while writes.recv_many(&mut batch, BATCH).await > 0 {
        let mut settled = Vec::with_capacity(batch.len());
        let committed = write_batch(&mut connection, batch.drain(..), &mut settled).await;
        if committed.is_err() {
            // What is left of the transaction must not leak into the next.
            let _ = sqlx::query("ROLLBACK").execute(&mut connection).await;
        }
        for settle in settled {
            settle(copy(&committed));
        }
    }
}

async fn write_batch(
    connection: &mut SqliteConnection,
    batch: impl Iterator<Item = Write>,
    settled: &mut Vec<Settle>,
) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    for Write { work } in batch {
        sqlx::query("SAVEPOINT piece").execute(&mut *connection).await?;
        let (keep, settle) = work(&mut *connection).await;
        settled.push(settle);
        if !keep {
            sqlx::query("ROLLBACK TO piece").execute(&mut *connection).await?;
        }
        sqlx::query("RELEASE piece").execute(&mut *connection).await?;
    }
    sqlx::query("COMMIT").execute(&mut *connection).await?;
    Ok(())
}

/// The answer that a request got before, if it was sent before, from the table
/// `requests` that every service that remembers answers has.
async fn recall<T: DeserializeOwned, E>(
    connection: &mut SqliteConnection,
    key: &RequestKey,
) -> Result<Option<T>, E>
where
    E: From<sqlx::Error> + From<RequestIdReused>,
{
    let row: Option<(Vec<u8>, String)> = sqlx::query_as(
        "SELECT fingerprint, answer FROM requests WHERE principal = ? AND request_id = ?",
    )
    .bind(&key.principal)
    .bind(key.request_id)
    .fetch_optional(connection)
    .await?;
    let Some((fingerprint, answer)) = row else { return Ok(None) };
    key.match_fingerprint(&fingerprint)?;
    let answer =
        serde_json::from_str(&answer).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Some(answer))
}

async fn remember<T: Serialize>(
    connection: &mut SqliteConnection,
    key: &RequestKey,
    answer: &T,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let answer =
        serde_json::to_string(answer).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        "INSERT INTO requests (principal, request_id, fingerprint, answer, create_time) \
         VALUES (?, ?, ?, ?, ?)",
    )
    .bind(&key.principal)
    .bind(key.request_id)
    .bind(key.fingerprint.as_slice())
    .bind(answer)
    .bind(now.as_micros())
    .execute(connection)
    .await?;
    Ok(())
}

/// One failure has many to tell, and `sqlx::Error` cannot be cloned.
fn copy(outcome: &Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(sqlx::Error::Io(io::Error::other(format!("the commit failed: {error}")))),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};
    use uuid::Uuid;

    use super::*;

    const SCHEMA: &[Step] = &[
        (1, "numbers", "CREATE TABLE numbers (number INTEGER PRIMARY KEY) STRICT"),
        (
            2,
            "requests",
            "CREATE TABLE requests (
                 principal TEXT, request_id BLOB, fingerprint BLOB, answer TEXT,
                 create_time INTEGER, PRIMARY KEY (principal, request_id)
             ) STRICT",
        ),
    ];

    async fn insert(database: &Database, number: i64) -> Result<(), sqlx::Error> {
        database
            .write(move |db| {
                async move {
                    let insert = sqlx::query("INSERT INTO numbers VALUES (?)").bind(number);
                    insert.execute(db).await.map(drop)
                }
                .boxed()
            })
            .await
    }

    async fn numbers(database: &Database) -> Vec<i64> {
        let rows = sqlx::query_as("SELECT number FROM numbers ORDER BY number");
        let rows: Vec<(i64,)> = rows.fetch_all(database.readers()).await.unwrap();
        rows.into_iter().map(|(number,)| number).collect()
    }

    #[tokio::test]
    async fn a_write_that_fails_undoes_itself_and_none_that_shares_its_commit() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
        let outcomes = join_all([1, 2, 2, 3, 1, 4].map(|number| insert(&database, number))).await;
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!((failed, numbers(&database).await), (2, vec![1, 2, 3, 4]));
    }

    #[tokio::test]
    async fn a_write_stands_though_its_caller_went_away() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
        assert!(insert(&database, 1).now_or_never().is_none(), "it has no time to end");
        insert(&database, 2).await.unwrap();
        assert_eq!(numbers(&database).await, [1, 2]);
    }

    #[tokio::test]
    async fn a_file_that_is_open_is_refused_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.db");
        let first = Database::open(&path, SCHEMA).await.unwrap();
        let second = Database::open(&path, SCHEMA).await.unwrap_err();
        assert!(matches!(second, OpenError::InUse(_)), "{second}");
        drop(first);
        Database::open(&path, SCHEMA).await.unwrap();
    }

    #[derive(Debug, thiserror::Error)]
    enum Error {
        #[error(transparent)]
        Reused(#[from] RequestIdReused),
        #[error(transparent)]
        Storage(#[from] sqlx::Error),
    }

    #[tokio::test]
    async fn a_request_is_done_once_and_another_under_its_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
        let key = |fingerprint| RequestKey {
            principal: "me".to_owned(),
            request_id: Uuid::from_u128(7),
            fingerprint: [fingerprint; 32],
        };
        let count = async |fingerprint| {
            database
                .write_once(key(fingerprint), Timestamp::default(), |db| {
                    async move {
                        sqlx::query("INSERT INTO numbers VALUES (NULL)").execute(&mut *db).await?;
                        let count = sqlx::query_as("SELECT count(*) FROM numbers");
                        let (count,): (i64,) = count.fetch_one(db).await?;
                        Ok::<_, Error>(count)
                    }
                    .boxed()
                })
                .await
        };
        assert_eq!(count(1).await.unwrap(), 1);
        assert_eq!(count(1).await.unwrap(), 1);
        assert!(matches!(count(2).await, Err(Error::Reused(RequestIdReused))));
        assert_eq!(numbers(&database).await.len(), 1);
    }
}
