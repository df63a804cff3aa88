//! The embedded database: one file, one writer, many readers.
//!
//! `SQLite` admits one writer at a time, so all writes of a process go through one
//! task. It takes what is waiting, runs each piece in a savepoint of its own
//! and commits them together: one `fsync` for many writes. When its caller goes away, a
//! write that was begun is never cut short, and one that was not is never begun; a
//! read is stopped.

mod readers;
#[cfg(test)]
mod tests;

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Connection, Row, SqlSafeStr, SqliteConnection,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tonic::Status;

use self::readers::Readers;
use crate::{
    Currency, InvalidCurrency, Reported, RequestIdReused, RequestKey, Timestamp, internal,
    unavailable,
};

/// How many writes may share a commit.
const BATCH: usize = 64;
/// How long the answer of a request is remembered: longer than anybody goes on repeating
/// one.
pub const REQUEST_RETENTION: Duration = Duration::from_hours(7 * 24);
/// How many answers are forgotten at once.
const FORGOTTEN_AT_ONCE: u32 = 500;
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
    readers: Arc<Readers>,
    writer: mpsc::Sender<Box<dyn Write>>,
    commits: watch::Sender<()>,
    /// Held for as long as the database is open.
    _lock: Arc<File>,
}

impl Database {
    /// Opens a file, makes it if there is none, and brings its schema up to date.
    pub async fn open(path: impl AsRef<Path>, schema: &[Step]) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let lock = lock(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An answer promises that its effect survives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(true);
        let failed = |error| OpenError::Open(path.to_owned(), error);
        open_private(path).map_err(|error| failed(error.into()))?;
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
        let readers = Arc::new(Readers::new(options.clone()));
        let (sender, receiver) = mpsc::channel(BATCH);
        let commits = watch::Sender::default();
        tokio::spawn(write_all(writer, options, receiver, commits.clone()));
        Ok(Self { readers, writer: sender, commits, _lock: Arc::new(lock) })
    }

    /// Runs `work` on a connection that only reads. Each of its statements sees the last
    /// commit. Dropped, it stops within milliseconds.
    pub async fn read<T, E, W>(&self, work: W) -> Result<T, E>
    where
        E: From<sqlx::Error>,
        W: AsyncFnOnce(&mut SqliteConnection) -> Result<T, E>,
    {
        self.readers.read(work).await
    }

    /// [`read`](Self::read) whose statements all see the same commit.
    pub async fn snapshot<T, E, W>(&self, work: W) -> Result<T, E>
    where
        E: From<sqlx::Error>,
        W: AsyncFnOnce(&mut SqliteConnection) -> Result<T, E>,
    {
        self.read(async |db| work(&mut *db.begin().await?).await).await
    }

    /// Wakes after commits, and once after many if it is slow. To miss none, subscribe
    /// first and read then.
    pub fn commits(&self) -> watch::Receiver<()> {
        self.commits.subscribe()
    }

    /// Runs `work` in a transaction of its own, as far as it can see. It is undone
    /// if it fails, and its answer is given only once it is on disk. Dropped before it
    /// was begun, it never is; later, it is carried through.
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

/// The currency in the column `currency_code` of a row.
pub fn currency(row: &SqliteRow) -> Result<Currency, sqlx::Error> {
    let currency = row.try_get::<&str, _>("currency_code")?.parse();
    currency.map_err(|error: InvalidCurrency| sqlx::Error::Decode(Box::new(error)))
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
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
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
    let file = open_private(&name).map_err(|error| OpenError::Lock(name.clone(), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(OpenError::Lock(name, error)),
    }
}

/// Opens a file that its owner alone can read and write, if it is new. `SQLite` makes
/// those beside it like it.
fn open_private(path: &Path) -> io::Result<File> {
    File::options().create(true).write(true).truncate(false).mode(0o600).open(path)
}

/// A write that waits for its turn, and whoever waits for it.
struct Piece<T, E, W> {
    work: Option<W>,
    /// What came of the work; none if it never ran or panicked.
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

trait Write: Send {
    /// Does the work if anybody waits for it, and says whether it is to be kept.
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
            // Nothing was promised yet to a caller who is gone.
            if self.reply.is_closed() {
                return false;
            }
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
    commits: watch::Sender<()>,
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
        commits.send_replace(());
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

/// Forgets answers that nobody asks for any more, a bounded number at once, and says
/// whether there may be more.
pub async fn forget_requests(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let forgotten = sqlx::query(
        "DELETE FROM requests WHERE (principal, request_id) IN ( \
             SELECT principal, request_id FROM requests WHERE create_time < ? LIMIT ? \
         )",
    )
    .bind(now.saturating_sub(REQUEST_RETENTION).as_micros())
    .bind(FORGOTTEN_AT_ONCE)
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected() >= FORGOTTEN_AT_ONCE.into())
}
