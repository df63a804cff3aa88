use std::{fs, os::unix::fs::PermissionsExt};

use futures::{TryStreamExt, future::join_all};
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
    let rows: Vec<(i64,)> = database.read(async |db| rows.fetch_all(db).await).await.unwrap();
    rows.into_iter().map(|(number,)| number).collect()
}

#[tokio::test]
async fn the_files_of_a_database_are_their_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
    insert(&database, 1).await.unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        names.push(entry.file_name());
    }
    names.sort();
    assert_eq!(names, ["it.db", "it.db-shm", "it.db-wal", "it.db.lock"]);
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
async fn a_write_that_has_begun_stands_though_its_caller_went_away() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
    let (begun, has_begun) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let write = database.write(|db| {
        async move {
            begun.send(()).unwrap();
            may_go_on.await.unwrap();
            sqlx::query("INSERT INTO numbers VALUES (1)").execute(db).await
        }
        .boxed()
    });
    tokio::select! {
        outcome = write => panic!("it has no leave to end: {outcome:?}"),
        begun = has_begun => begun.unwrap(),
    }
    go_on.send(()).unwrap();
    insert(&database, 2).await.unwrap();
    assert_eq!(numbers(&database).await, [1, 2]);
}

#[tokio::test]
async fn a_write_whose_caller_went_away_while_it_waited_is_never_begun() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
    assert!(insert(&database, 1).now_or_never().is_none(), "it has no time to begin");
    insert(&database, 2).await.unwrap();
    assert_eq!(numbers(&database).await, [2]);
}

/// Begins a read that never ends by itself, and goes away.
async fn abandon_read(database: &Database) {
    let (begun, has_begun) = oneshot::channel();
    let read = database.read(async |db| {
        let mut db = db.begin().await?;
        let mut rows = sqlx::query(
            "WITH RECURSIVE endless (number) AS (
                 SELECT count(*) FROM numbers UNION ALL SELECT number + 1 FROM endless
             )
             SELECT number FROM endless WHERE number = (SELECT count(*) FROM numbers)",
        )
        .fetch(&mut *db);
        rows.try_next().await?;
        begun.send(()).unwrap();
        rows.try_next().await
    });
    tokio::select! {
        outcome = read => panic!("there is but one row: {:?}", outcome.map(drop)),
        begun = has_begun => begun.unwrap(),
    }
}

#[tokio::test]
async fn reads_whose_callers_went_away_stop_and_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
    let rounds = async {
        for round in 0..20 {
            join_all((0..8).map(|_| abandon_read(&database))).await;
            insert(&database, round).await.unwrap();
            // On every connection: none is stopped in another's stead, or sees the past.
            for seen in join_all((0..8).map(|_| numbers(&database))).await {
                assert!(seen.into_iter().eq(0..=round));
            }
        }
    };
    time::timeout(Duration::from_mins(1), rounds).await.expect("reads do not stop");
}

#[tokio::test]
async fn a_read_that_fails_says_why_and_the_next_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("it.db"), SCHEMA).await.unwrap();
    for _ in 0..8 {
        let failed = database.read(async |db| sqlx::query("SELECT 1 FROM gone").execute(db).await);
        let error = failed.await.unwrap_err();
        assert!(error.to_string().contains("no such table: gone"), "{error}");
        assert!(numbers(&database).await.is_empty());
    }
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
