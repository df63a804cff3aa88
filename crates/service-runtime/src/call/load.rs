//! How much one process takes on. What is more is refused at once: a call that would
//! wait until its caller has given up is worth nothing, and its memory is missed by all.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use client::SpiffeId;
use tonic::Status;

use crate::error;

/// How many unary calls may be under way. One that waits takes some 20 KiB beside its
/// message, so that all of them take 40 MiB. By Little's law they are 1,000 calls a second
/// of two seconds each, which is how long Reserve and Charge may take. CreatePurchase waits
/// longest, up to 30 seconds for a service that is away: there is room for 68 a second of
/// those, and the rest had better come again than wait in vain, too.
const MOST_UNARY: usize = 2048;
/// How many streams of the contract may be open. One that is idle takes some 10 KiB, so
/// that all of them take 40 MiB; one that is read holds a page of rows more.
const MOST_STREAMS: usize = 4096;
/// How many streams of health and of reflection may be open: one for each connection of
/// dozens of callers.
const MOST_INQUIRIES: usize = 256;

/// When the first of those who are refused may come again: a loaded process answers some
/// hundreds of calls in this time. The others come in turns of [`TURN`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
const TURN: Duration = Duration::from_millis(50);
/// How many turns there are.
const TURNS: usize = 20;

/// What calls have limits of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unary,
    Stream,
    /// A stream that is not of the contract, but of health or reflection.
    Inquiry,
}

/// The calls that are under way in one process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    unary: Arc<Places>,
    streams: Arc<Places>,
    inquiries: Arc<Places>,
}

impl Default for Load {
    fn default() -> Self {
        Self::of(MOST_UNARY, MOST_STREAMS)
    }
}

impl Load {
    pub(super) fn of(most_unary: usize, most_streams: usize) -> Self {
        let places = |name, most| Arc::new(Places { name, most, taken: Mutex::default() });
        Self {
            unary: places("unary calls", most_unary),
            streams: places("streams", most_streams),
            inquiries: places("streams of health and reflection", MOST_INQUIRIES),
        }
    }

    /// The unary calls and the streams.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> [usize; 2] {
        [&self.unary, &self.streams].map(|places| places.taken().by_all.under_way)
    }

    /// Counts a call until its place is dropped, or refuses it.
    pub(super) fn admit(&self, kind: Kind, peer: &SpiffeId) -> Result<Place, Status> {
        let places = match kind {
            Kind::Unary => &self.unary,
            Kind::Stream => &self.streams,
            Kind::Inquiry => &self.inquiries,
        };
        places.take(peer)?;
        Ok(Place { places: Arc::clone(places), peer: peer.clone() })
    }
}

/// The places of one kind of calls.
#[derive(Debug)]
struct Places {
    name: &'static str,
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_all: Count,
    /// Of those who have a place.
    by_peer: HashMap<SpiffeId, Count>,
}

#[derive(Debug, Default)]
struct Count {
    under_way: usize,
    /// How many were refused since there was room for all.
    refused: usize,
}

impl Places {
    /// How many of them one workload may have, whatever its connections: half, so that none
    /// that is out of order keeps all others out.
    fn share(&self) -> usize {
        self.most.div_ceil(2)
    }

    fn take(&self, peer: &SpiffeId) -> Result<(), Status> {
        let Self { name, most, .. } = self;
        let mut taken = self.taken();
        if taken.by_all.under_way >= self.most {
            return Err(taken
                .by_all
                .refuse(|| tracing::warn!(most, "too many {name}: some are refused")));
        }
        let by_peer = taken.by_peer.entry(peer.clone()).or_default();
        if by_peer.under_way >= self.share() {
            return Err(by_peer.refuse(|| {
                tracing::warn!(%peer, most = self.share(), "too many {name} of one: some are refused");
            }));
        }
        by_peer.under_way += 1;
        taken.by_all.under_way += 1;
        Ok(())
    }

    fn release(&self, peer: &SpiffeId) {
        let Self { name, most, .. } = self;
        let mut taken = self.taken();
        if let Some(refused) = taken.by_all.release(*most) {
            tracing::warn!(refused, "there is room for {name} again");
        }
        let Some(by_peer) = taken.by_peer.get_mut(peer) else { return };
        if let Some(refused) = by_peer.release(self.share()) {
            tracing::warn!(%peer, refused, "there is room for {name} of one again");
        }
        if by_peer.under_way == 0 {
            taken.by_peer.remove(peer);
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    /// Refuses a call, and tells of the first of many.
    fn refuse(&mut self, tell: impl FnOnce()) -> Status {
        let before = self.refused;
        self.refused += 1;
        if before == 0 {
            tell();
        }
        let turn = TURN.saturating_mul(u32::try_from(before % TURNS).unwrap_or(0));
        error::exhausted(
            "OVERLOADED",
            "the service has too much to do; repeat the call when the details say",
            FIRST_RETRY + turn,
        )
    }

    /// Who is at the limit again and again is overloaded all the while: that is over when
    /// a quarter of the places is free. Tells how many were refused until then.
    fn release(&mut self, most: usize) -> Option<usize> {
        self.under_way -= 1;
        let is_over = self.refused > 0 && self.under_way <= most - most / 4;
        is_over.then(|| mem::take(&mut self.refused))
    }
}

/// The place of a call among those under way.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    peer: SpiffeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.release(&self.peer);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    fn peer(number: usize) -> SpiffeId {
        SpiffeId::new("chandlery.local", "chandlery", &format!("caller-{number}")).unwrap()
    }

    #[test]
    fn what_is_too_much_is_refused_with_a_time_to_come_again_and_each_kind_has_its_own_room() {
        let load = Load::of(2, 2);
        let held = [0, 1].map(|number| load.admit(Kind::Unary, &peer(number)).unwrap());
        let delays: Vec<_> = (0..3)
            .map(|number| {
                let refused = load.admit(Kind::Unary, &peer(number)).unwrap_err();
                assert_eq!(refused.code(), Code::ResourceExhausted);
                assert_eq!(error::reason(&refused).as_deref(), Some("OVERLOADED"));
                let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
                let push_back = refused.metadata().get("grpc-retry-pushback-ms").unwrap();
                assert_eq!(push_back.to_str().unwrap(), delay.as_millis().to_string());
                delay
            })
            .collect();
        assert_eq!(delays, [FIRST_RETRY, FIRST_RETRY + TURN, FIRST_RETRY + 2 * TURN]);
        assert!(load.admit(Kind::Stream, &peer(0)).is_ok());
        assert!(load.admit(Kind::Inquiry, &peer(0)).is_ok());
        drop(held);
        assert!(load.admit(Kind::Unary, &peer(0)).is_ok());
    }

    #[test]
    fn whoever_has_half_of_the_places_gets_no_more_and_others_do() {
        let load = Load::of(4, 4);
        let mut held = [0, 0, 1].map(|number| load.admit(Kind::Unary, &peer(number)).unwrap());
        let refused = load.admit(Kind::Unary, &peer(0)).unwrap_err();
        assert_eq!(error::reason(&refused).as_deref(), Some("OVERLOADED"));
        held[0] = load.admit(Kind::Unary, &peer(1)).unwrap();
        load.admit(Kind::Unary, &peer(1)).unwrap_err();
        load.admit(Kind::Unary, &peer(0)).unwrap();
        drop(held);
        assert!(load.unary.taken().by_peer.is_empty());
    }

    #[test]
    fn an_overload_lasts_until_a_quarter_of_the_places_is_free() {
        let load = Load::of(4, 4);
        let mut held: Vec<_> =
            (0..4).map(|number| load.admit(Kind::Unary, &peer(number)).unwrap()).collect();
        let refused = || load.unary.taken().by_all.refused;
        load.admit(Kind::Unary, &peer(0)).unwrap_err();
        load.admit(Kind::Unary, &peer(4)).unwrap_err();
        assert_eq!(refused(), 2);
        held.pop();
        assert_eq!(refused(), 0);
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_the_count_is_that_of_the_places_and_never_beyond_a_limit(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0..8_usize), 0..64),
        ) {
            let load = Load::of(4, 4);
            let mut held = [Vec::new(), Vec::new()];
            for (streaming, comes, index) in steps {
                let places = &mut held[usize::from(streaming)];
                if comes {
                    let kind = if streaming { Kind::Stream } else { Kind::Unary };
                    let peer = peer(index % 3);
                    let own = places.iter().filter(|place: &&Place| place.peer == peer).count();
                    let is_full = places.len() == 4 || own == 2;
                    let admitted = load.admit(kind, &peer);
                    prop_assert_eq!(admitted.is_err(), is_full);
                    places.extend(admitted);
                } else if index < places.len() {
                    places.swap_remove(index);
                }
            }
            prop_assert_eq!(load.under_way(), held.each_ref().map(Vec::len));
            drop(held);
            prop_assert_eq!(load.under_way(), [0, 0]);
        }
    }
}
