//! Wakes those who wait for a purchase or a cart. Whoever is woken reads the record anew:
//! nothing is believed but what is committed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
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
