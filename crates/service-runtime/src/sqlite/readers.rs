//! The connections that only read. `SQLite` knows nothing of deadlines and callers: a
//! scan whose caller is gone would go on to its end, on one of the few connections
//! there are. So a read that is dropped is stopped.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How many reads run at once.
const READERS: usize = 4;
/// How many instructions of its virtual machine `SQLite` runs before it looks again
/// whether to stop: less than a millisecond, yet far more than the ROLLBACK after a
/// dropped transaction takes, which must not be stopped.
const STOP_INTERVAL: i32 = 10_000;

/// A pool of connections, opened when they are first needed.
#[derive(Debug)]
pub(super) struct Readers {
    options: SqliteConnectOptions,
    permits: Semaphore,
    /// Taken from the back. Those that are still to stop wait at the front.
    idle: Mutex<VecDeque<Reader>>,
}

impl Readers {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        let options = options.read_only(true);
        Self { options, permits: Semaphore::new(READERS), idle: Mutex::default() }
    }

    /// Runs `work` on a connection once there is one to spare.
    pub(super) async fn read<T, E, W>(&self, work: W) -> Result<T, E>
    where
        E: From<sqlx::Error>,
        W: AsyncFnOnce(&mut SqliteConnection) -> Result<T, E>,
    {
        let mut loan = self.lend().await?;
        let outcome = work(loan.connection().await?).await;
        // What failed may have left rows unread, or a connection that is lost.
        loan.at_rest = outcome.is_ok();
        outcome
    }

    async fn lend(&self) -> Result<Loan<'_>, sqlx::Error> {
        let permit = self.permits.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let reader = self.idle().pop_back();
        Ok(Loan { readers: self, reader, at_rest: false, _permit: permit })
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Reader>> {
        // Nothing is left half done in the queue by a panic elsewhere.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to use a connection, which goes back to the pool however the read ends.
struct Loan<'a> {
    readers: &'a Readers,
    /// None if it is yet to be opened.
    reader: Option<Reader>,
    /// Whether nothing is under way on it.
    at_rest: bool,
    _permit: SemaphorePermit<'a>,
}

impl Loan<'_> {
    async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        if let Some(reader) = &mut self.reader
            && reader.stopped().await.is_err()
        {
            self.reader = None;
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            vacant => vacant.insert(Reader::open(&self.readers.options).await?),
        };
        Ok(&mut reader.connection)
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        if self.at_rest {
            self.readers.idle().push_back(reader);
        } else {
            reader.stop.store(true, Ordering::Relaxed);
            self.readers.idle().push_front(reader);
        }
    }
}

#[derive(Debug)]
struct Reader {
    connection: SqliteConnection,
    /// Tells `SQLite` to give up what it runs.
    stop: Arc<AtomicBool>,
}

impl Reader {
    async fn open(options: &SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = SqliteConnection::connect_with(options).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        connection
            .lock_handle()
            .await?
            .set_progress_handler(STOP_INTERVAL, move || !stopping.load(Ordering::Relaxed));
        Ok(Self { connection, stop })
    }

    /// Waits until what was told to stop has stopped, so that nobody else is stopped
    /// in its stead.
    async fn stopped(&mut self) -> Result<(), sqlx::Error> {
        if self.stop.load(Ordering::Relaxed) {
            self.connection.ping().await?;
            self.stop.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}
