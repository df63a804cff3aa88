//! Follows the products: tells how each stands, again and again, whenever it has
//! changed. What was between two looks is not told, so that who is slow costs nothing.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

use crate::{error::Error, product::Product, store::Store};

/// How many products are read at once, which is what a slow reader holds in memory: of
/// the largest, as much as is sent at once.
const PAGE: u16 = 16;

/// How long to wait after a write before it is looked for: writes come in bursts, many
/// may watch, and one look finds all of a burst.
const PAUSE: Duration = Duration::from_millis(10);

/// How far a watch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The change that was told last; zero before the first.
    pub told: i64,
    /// The last change there was when the watch began: products that were deleted by
    /// then are not told of.
    pub begun: i64,
}

/// How a product stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The number of its last change.
    pub number: i64,
    /// The product, which may be deleted.
    pub product: Product,
}

/// Somebody who follows products.
#[derive(Debug)]
pub struct Watch<S> {
    store: S,
    commits: watch::Receiver<()>,
    /// Which products; all if none.
    ids: Vec<Uuid>,
    position: Position,
    /// What was read and is not told yet.
    pending: VecDeque<Change>,
    /// The change up to which all was read.
    read: i64,
}

impl<S: Store> Watch<S> {
    /// Follows products, all if no identifiers are given: first how each stands, then
    /// whatever changes; or what has changed since a position.
    pub async fn begin(
        store: S,
        ids: Vec<Uuid>,
        position: Option<Position>,
    ) -> Result<Self, Error> {
        // Before anything is read, so that no commit is missed.
        let commits = store.commits();
        let position = match position {
            Some(position) => position,
            None => Position { told: 0, begun: store.last_change().await? },
        };
        Ok(Self { store, commits, ids, position, pending: VecDeque::new(), read: position.told })
    }

    /// Waits for the next product to tell of, and tells what to go on after.
    pub async fn next(&mut self) -> Result<(Product, Position), Error> {
        loop {
            if let Some(Change { number, product }) = self.pending.pop_front() {
                self.position.told = number;
                return Ok((product, self.position));
            }
            let last = self.store.last_change().await?;
            if self.read == last {
                // The sender lives for as long as the store, of which this holds one.
                let _ = self.commits.changed().await;
                sleep(PAUSE).await;
                continue;
            }
            self.pending = self.store.changes(&self.ids, self.position, PAGE.into()).await?.into();
            if self.pending.len() < PAGE.into() {
                self.read = last;
            }
        }
    }
}
