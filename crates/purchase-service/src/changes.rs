//! Wakes those who wait for a purchase or a cart. Whoever is woken reads the record anew:
//! nothing is believed but what is committed.

use std::{
    collections::HashMap,
    future::Future,
    panic,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tracing::Instrument;
use uuid::Uuid;

/// Who waits for which purchase or cart. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Mutex<HashMap<Uuid, watch::Sender<()>>>>);

impl Changes {
    /// Waits for changes of a purchase or a cart from now on. To miss none, subscribe first
    /// and read the record then.
    pub fn subscribe(&self, id: Uuid) -> Subscription {
        let mut waiting = self.waiting();
        let changed = waiting.entry(id).or_default().subscribe();
        Subscription { id, changed: Some(changed), changes: self.clone() }
    }

    /// Wakes all who wait for a purchase or a cart.
    pub fn announce(&self, id: Uuid) {
        if let Some(sender) = self.waiting().get(&id) {
            sender.send_replace(());
        }
    }

    /// Carries a write through and announces it, also when its caller goes away meanwhile:
    /// what was begun is committed all the same, and those who wait are to hear of it.
    pub async fn announce_after<T: Send + 'static>(
        &self,
        id: Uuid,
        write: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let changes = self.clone();
        let announced = async move {
            let outcome = write.await;
            changes.announce(id);
            outcome
        };
        match tokio::spawn(announced.in_current_span()).await {
            Ok(outcome) => outcome,
            // Nobody aborts the task, so that it can only have panicked.
            Err(error) => panic::resume_unwind(error.into_panic()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        // Nothing is left half done in the map by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for a purchase or a cart.
#[derive(Debug)]
pub struct Subscription {
    id: Uuid,
    /// None once it is being dropped.
    changed: Option<watch::Receiver<()>>,
    changes: Changes,
}

impl Subscription {
    /// Waits for a change since the subscription, or since the last change that was
    /// waited for.
    pub async fn changed(&mut self) {
        if let Some(changed) = &mut self.changed {
            // The sender stays in the map for as long as anybody is subscribed.
            let _ = changed.changed().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiting = self.changes.waiting();
        // Under the lock, so that of two that end at once one is the last.
        self.changed = None;
        let abandoned = |sender: &watch::Sender<()>| sender.receiver_count() == 0;
        if waiting.get(&self.id).is_some_and(abandoned) {
            waiting.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn a_change_after_the_subscription_wakes_and_nothing_is_left_behind() {
        let changes = Changes::default();
        let (mine, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut first = changes.subscribe(mine);
        let second = changes.subscribe(mine);
        changes.announce(other);
        assert!(first.changed().now_or_never().is_none());
        changes.announce(mine);
        assert!(first.changed().now_or_never().is_some());
        assert!(first.changed().now_or_never().is_none());
        drop(first);
        assert_eq!(changes.waiting().len(), 1);
        drop(second);
        assert_eq!(changes.waiting().len(), 0);
    }

    #[tokio::test]
    async fn a_write_is_announced_also_when_its_caller_has_gone() {
        let changes = Changes::default();
        let id = Uuid::from_u128(1);
        let mut subscription = changes.subscribe(id);
        let (commit, committed) = oneshot::channel::<()>();
        let mut writing = Box::pin(changes.announce_after(id, committed));
        assert!(writing.as_mut().now_or_never().is_none());
        drop(writing);
        assert!(subscription.changed().now_or_never().is_none());
        commit.send(()).unwrap();
        subscription.changed().await;
    }

    #[test]
    fn subscriptions_that_end_at_once_leave_nothing_behind() {
        let changes = Changes::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for purchase in 0..20_000 {
                        changes.subscribe(Uuid::from_u128(purchase / 100));
                    }
                });
            }
        });
        assert_eq!(changes.waiting().len(), 0);
    }
}
