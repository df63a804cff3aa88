//! The endpoints of a channel: kept in step with discovery, and one of them taken for
//! each attempt at a call.

use std::{collections::HashMap, future::pending, pin::pin, sync::Arc};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Identity, SpiffeId, Target,
    balance::Picker,
    connection::Connector,
    discovery::{self, Discovered},
    endpoint::{Endpoint, Lease},
    keeper::Keeper,
    random::Random,
    target::Address,
};

/// The endpoints of a channel, which are kept until this is dropped.
pub(crate) struct Endpoints {
    /// The peer as errors name it.
    peer: Arc<str>,
    set: Arc<watch::Sender<Set>>,
    picker: Picker,
    /// Told when an endpoint that was full has room again.
    room: Arc<Notify>,
    _follower: AbortOnDropHandle<()>,
}

/// What calls see of all endpoints.
#[derive(Default)]
struct Set {
    /// None until discovery has found out.
    endpoints: Option<Vec<Arc<Endpoint>>>,
    /// Those of them that can be called now.
    ready: Vec<Arc<Endpoint>>,
    /// Why discovery does not know better.
    error: Option<String>,
}

impl Endpoints {
    /// Begins to find and to connect to the endpoints of a target. Must be called in a
    /// tokio runtime.
    pub(crate) fn new(
        target: &Target,
        identity: Identity,
        peer: SpiffeId,
        picker: Picker,
        random: Arc<Random>,
    ) -> Self {
        let name = format!("{} at {target}", peer.workload()).into();
        let set = Arc::new(watch::Sender::new(Set::default()));
        let (lost, room) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let discovered = discovery::follow(target, Arc::clone(&lost));
        let changed = {
            let set = Arc::clone(&set);
            move || set.send_modify(Set::refresh)
        };
        let freed = Arc::clone(&room);
        let keep = move |endpoint: &Arc<Endpoint>| {
            let (identity, peer, room) = (identity.clone(), peer.clone(), Arc::clone(&freed));
            let address = endpoint.address().clone();
            let connector = Connector { address, identity, peer, room };
            let (endpoint, lost) = (Arc::clone(endpoint), Arc::clone(&lost));
            let keeper =
                Keeper::new(endpoint, connector, changed.clone(), lost, Arc::clone(&random));
            AbortOnDropHandle::new(tokio::spawn(keeper.run()))
        };
        let follower = tokio::spawn(follow(discovered, Arc::clone(&set), keep));
        Self { peer: name, set, picker, room, _follower: AbortOnDropHandle::new(follower) }
    }

    /// The peer as errors name it.
    pub(crate) fn peer(&self) -> &Arc<str> {
        &self.peer
    }

    /// A place at an endpoint, and not at the one to `avoid` if there is another. Waits
    /// while it is not known yet whether there is any, and while all are full; says why
    /// there is none.
    pub(crate) async fn lease(&self, avoid: Option<&Arc<Endpoint>>) -> Result<Lease, String> {
        let asked = Instant::now();
        if let Some(decided) = self.try_lease(avoid, asked) {
            return decided;
        }
        let mut changes = self.set.subscribe();
        loop {
            let mut room = pin!(self.room.notified());
            // From here on, no room that there is goes unnoticed.
            room.as_mut().enable();
            if let Some(decided) = self.try_lease(avoid, asked) {
                // Where there is room for one there may be room for the next who waits.
                self.room.notify_one();
                return decided;
            }
            tokio::select! {
                // The sender lives as long as this.
                _ = changes.changed() => {}
                () = room => {}
            }
        }
    }

    /// None while there is nothing to do but to wait.
    fn try_lease(
        &self,
        avoid: Option<&Arc<Endpoint>>,
        asked: Instant,
    ) -> Option<Result<Lease, String>> {
        let is_avoided = |it: &Arc<_>| avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, it));
        let set = self.set.borrow();
        let Some(picked) = self.picker.pick(&set.ready, |it| it.cost(), is_avoided) else {
            return Some(Err(format!("{}{}", self.peer, set.absence(asked)?)));
        };
        let lease = picked.lease().or_else(|| {
            // It is full, or has just lost its last connection and will say so in a moment.
            let with_room: Vec<_> = set.ready.iter().filter(|it| it.has_room()).collect();
            self.picker.pick(&with_room, |it| it.cost(), |it| is_avoided(it))?.lease()
        });
        lease.map(Ok)
    }

    /// The endpoints of today, and why discovery does not know better.
    pub(crate) fn known(&self) -> (Vec<Arc<Endpoint>>, Option<String>) {
        let set = self.set.borrow();
        (set.endpoints.clone().unwrap_or_default(), set.error.clone())
    }
}

impl Set {
    fn refresh(&mut self) {
        let endpoints = self.endpoints.iter().flatten();
        self.ready = endpoints.filter(|it| it.is_ready()).cloned().collect();
    }

    /// Why nobody can be called, for a call that asks since then; none if somebody may be
    /// soon.
    fn absence(&self, asked: Instant) -> Option<String> {
        match self.endpoints.as_deref()? {
            [] => {
                let error = self.error.as_deref().unwrap_or("discovery found none");
                Some(format!(" has no endpoints: {error}"))
            }
            [endpoint] => Some(format!(": {}", endpoint.believed_failure(asked)?)),
            endpoints => {
                let reason = |it: &Arc<Endpoint>| {
                    Some(format!("{}: {}", it.address(), it.believed_failure(asked)?))
                };
                // Whether all of them are known to be down matters; each is asked.
                let reasons: Vec<_> = endpoints.iter().map(reason).collect();
                let reasons = reasons.into_iter().collect::<Option<Vec<_>>>()?;
                Some(format!(": {}", reasons.join("; ")))
            }
        }
    }
}

/// Has every endpoint kept that discovery names, and no other.
async fn follow(
    mut discovered: watch::Receiver<Discovered>,
    set: Arc<watch::Sender<Set>>,
    keep: impl Fn(&Arc<Endpoint>) -> AbortOnDropHandle<()>,
) {
    let mut kept: HashMap<Address, (Arc<Endpoint>, AbortOnDropHandle<()>)> = HashMap::new();
    loop {
        let Discovered { addresses, error } = discovered.borrow_and_update().clone();
        if let Some(addresses) = &addresses {
            kept.retain(|address, _| addresses.contains(address));
        }
        let endpoints = addresses.map(|addresses| {
            let endpoint = |address: &Address| {
                let (endpoint, _) = kept.entry(address.clone()).or_insert_with(|| {
                    let endpoint = Arc::new(Endpoint::new(address.clone()));
                    let keeper = keep(&endpoint);
                    (endpoint, keeper)
                });
                Arc::clone(endpoint)
            };
            addresses.iter().map(endpoint).collect()
        });
        set.send_modify(|set| {
            (set.endpoints, set.error) = (endpoints, error);
            set.refresh();
        });
        if discovered.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Place;

    fn address(port: u16) -> Address {
        let target: Target = format!("static:///127.0.0.1:{port}").parse().unwrap();
        let Place::Fixed(addresses) = target.place() else { unreachable!("it is static") };
        addresses[0].clone()
    }

    #[tokio::test]
    async fn what_discovery_names_is_kept_and_nothing_else() {
        let (discover, discovered) = watch::channel(Discovered::default());
        let set = Arc::new(watch::Sender::new(Set::default()));
        let mut changes = set.subscribe();
        let alive = Arc::new(());
        let keep = {
            let alive = Arc::clone(&alive);
            move |_: &Arc<Endpoint>| {
                let alive = Arc::clone(&alive);
                AbortOnDropHandle::new(tokio::spawn(async move {
                    pending::<()>().await;
                    drop(alive);
                }))
            }
        };
        let _follower = AbortOnDropHandle::new(tokio::spawn(follow(discovered, set, keep)));
        changes.changed().await.unwrap();
        assert!(changes.borrow_and_update().endpoints.is_none());
        assert_eq!(changes.borrow().absence(Instant::now()), None, "it is not known yet");

        let mut known = Vec::new();
        for ports in [&[1, 2][..], &[2, 3], &[]] {
            let addresses = ports.iter().map(|port| address(*port)).collect();
            let found = Discovered { addresses: Some(addresses), error: None };
            discover.send_replace(found);
            changes.changed().await.unwrap();
            known.push(changes.borrow_and_update().endpoints.clone().unwrap());
        }
        assert!(Arc::ptr_eq(&known[0][1], &known[1][0]), "it was there all the time");
        assert_eq!(known[1][1].address().to_string(), "127.0.0.1:3");
        let absence = changes.borrow().absence(Instant::now());
        assert_eq!(absence.as_deref(), Some(" has no endpoints: discovery found none"));
        // What keeps the next ones is left, and this.
        while Arc::strong_count(&alive) > 2 {
            tokio::task::yield_now().await;
        }
    }
}
