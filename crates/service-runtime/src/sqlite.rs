//! The embedded database: one file, one writer, many readers.
//!
//! `SQLite` admits one writer at a time, so all writes of a process go through one
//! task. It takes what is waiting, runs each piece in a savepoint of its own
//! and commits them together: one `fsync` for many writes. A write that was begun is
//! never cut short when its caller goes away.

use std::{
    fs::{File, TryLockError},
    io,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Connection, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tonic::Status;

use crate::{Reported, RequestIdReused, RequestKey, Timestamp, internal, unavailable};

const READERS: u32 = 4;
/// How many writes may share a commit.
const BATCH: usize = 64;
/// How long to wait before another attempt to open the connection that writes.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

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
    writer: mpsc::Sender<Box<dyn Write>>,
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
            .connect_with(options.clone().read_only(true))
            .await
            .map_err(failed)?;
        let (sender, receiver) = mpsc::channel(BATCH);
        tokio::spawn(write_all(writer, options, receiver));
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
        let (reply, answer) = oneshot::channel();
        let piece = Box::new(Piece { work: Some(work), outcome: None, reply });
        self.writer.send(piece).await.map_err(|_| sqlx::Error::PoolClosed)?;
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
    if is_transient(error) { unavailable(error) } else { internal(error) }
}

fn is_transient(error: &sqlx::Error) -> bool {
    // https://sqlite.org/rescode.html: BUSY, LOCKED, IOERR, FULL, CANTOPEN; extended
    // codes carry theirs in the low byte.
    const TRANSIENT: [i32; 5] = [5, 6, 10, 13, 14];
    match error {
        sqlx::Error::Io(error) => error
            .get_ref()
            .and_then(|cause| cause.downcast_ref::<BatchFailed>())
            .is_none_or(|BatchFailed(cause)| is_transient(cause)),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            .is_some_and(|code| TRANSIENT.contains(&(code & 0xff))),
        _ => false,
    }
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

/// A write that waits for its turn, and whoever waits for it.
struct Piece<T, E, W> {
    work: Option<W>,
    /// What came of the work; none if it never ran or panicked.
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

trait Write: Send {
    /// Does the work, and says whether it is to be kept.
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, bool>;

    /// Tells whoever waits what became of the work and of its commit.
    fn settle(self: Box<Self>, committed: Result<(), BatchFailed>);
}

impl<T, E, W> Write for Piece<T, E, W>
where
    T: Send,
    E: From<sqlx::Error> + Send,
    W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send,
{
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let work = self.work.take();
            // A panic undoes its own piece: the savepoint is rolled back.
            let running = AssertUnwindSafe(async { Some(work?(connection).await) });
            self.outcome = running.catch_unwind().await.ok().flatten();
            self.outcome.as_ref().is_some_and(Result::is_ok)
        })
    }

    fn settle(self: Box<Self>, committed: Result<(), BatchFailed>) {
        let lost = || E::from(sqlx::Error::Protocol("the write panicked".to_owned()));
        let outcome = match committed {
            Ok(()) => self.outcome.unwrap_or_else(|| Err(lost())),
            Err(failed) => Err(sqlx::Error::Io(io::Error::other(failed)).into()),
        };
        // Whoever asked may have gone; the effect stands all the same.
        let _ = self.reply.send(outcome);
    }
}

/// Why many writes at once are not on disk. Logged once, where it happened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the commit failed: {0}")]
struct BatchFailed(Arc<sqlx::Error>);

async fn write_all(
    mut connection: SqliteConnection,
    options: SqliteConnectOptions,
    mut writes: mpsc::Receiver<Box<dyn Write>>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while writes.recv_many(&mut batch, BATCH).await > 0 {
        let committed = write_batch(&mut connection, &mut batch).await;
        let committed = committed.map_err(|error| BatchFailed(Arc::new(error)));
        if let Err(error) = &committed {
            tracing::error!(%error, writes = batch.len(), "writes are lost");
            // What is left of the transaction must not leak into the next.
            let _ = sqlx::query("ROLLBACK").execute(&mut connection).await;
        }
        for piece in batch.drain(..) {
            piece.settle(committed.clone());
        }
        while let Err(error) = connection.ping().await {
            tracing::error!(%error, "the connection that writes is lost; opening another");
            time::sleep(REOPEN_INTERVAL).await;
            if let Ok(fresh) = SqliteConnection::connect_with(&options).await {
                connection = fresh;
            }
        }
    }
}

async fn write_batch(
    connection: &mut SqliteConnection,
    batch: &mut [Box<dyn Write>],
) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    for piece in batch {
        sqlx::query("SAVEPOINT piece").execute(&mut *connection).await?;
        if !piece.run(&mut *connection).await {
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

#[cfg(test)]
mod tests {
    use futures::future::join_all;
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
    async fn a_write_that_panics_undoes_itself_and_the_next_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
        let panicked: Result<(), _> = database
            .write(|db| {
                async move {
                    sqlx::query("INSERT INTO numbers VALUES (7)").execute(db).await?;
                    panic!("as planned")
                }
                .boxed()
            })
            .await;
        let error: sqlx::Error = panicked.unwrap_err();
        assert!(!is_transient(&error), "{error}");
        insert(&database, 1).await.unwrap();
        assert_eq!(numbers(&database).await, [1]);
    }

    #[tokio::test]
    async fn writes_that_cannot_begin_say_why_and_the_next_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.db");
        let database = Database::open(&path, SCHEMA).await.unwrap();
        let options = SqliteConnectOptions::new().filename(&path);
        let mut foreign = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut foreign).await.unwrap();
        let error = insert(&database, 1).await.unwrap_err();
        assert!(error.to_string().contains("database is locked"), "{error}");
        assert!(is_transient(&error));
        sqlx::query("ROLLBACK").execute(&mut foreign).await.unwrap();
        insert(&database, 2).await.unwrap();
        assert_eq!(numbers(&database).await, [2]);
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
