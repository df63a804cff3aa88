//! How much one process takes on. What is more is refused at once: a call that would
//! wait until its caller has given up is worth nothing, and its memory is missed by all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tonic::Status;

use crate::error;

/// How many unary calls may be under way. One that waits takes some 20 KiB beside its
/// message, so that all of them take 20 MiB. By Little's law they are 500 calls a second of
/// two seconds each, which is how long Reserve and Charge may take. CreatePurchase waits
/// longest, up to 30 seconds for a service that is away: there is room for 34 a second of
/// those, and the rest had better come again than wait in vain, too.
const MOST_UNARY: usize = 1024;
/// How many streams may be open, those of health and reflection included. One that is
/// idle takes some 10 KiB, so that all of them take 40 MiB; one that is read holds a page
/// of rows more.
const MOST_STREAMS: usize = 4096;

/// When the first of those who are refused may come again: a loaded process answers some
/// hundreds of calls in this time. The others come in turns of [`TURN`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
const TURN: Duration = Duration::from_millis(50);
/// How many turns there are.
const TURNS: usize = 20;

/// The calls that are under way in one process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    unary: Arc<Kind>,
    streams: Arc<Kind>,
}

impl Default for Load {
    fn default() -> Self {
        Self::of(MOST_UNARY, MOST_STREAMS)
    }
}

impl Load {
    pub(super) fn of(most_unary: usize, most_streams: usize) -> Self {
        Self {
            unary: Arc::new(Kind::new("unary calls", most_unary)),
            streams: Arc::new(Kind::new("streams", most_streams)),
        }
    }

    /// The unary calls and the streams.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> [usize; 2] {
        [&self.unary, &self.streams].map(|kind| kind.under_way.load(Relaxed))
    }

    /// Counts a call until its place is dropped, or refuses it.
    pub(super) fn admit(&self, streaming: bool) -> Result<Place, Status> {
        let kind = if streaming { &self.streams } else { &self.unary };
        kind.admit().map(|()| Place(Arc::clone(kind)))
    }
}

/// Calls that share a limit.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    most: usize,
    under_way: AtomicUsize,
    /// How many were refused since there was room for all.
    refused: AtomicUsize,
}

impl Kind {
    fn new(name: &'static str, most: usize) -> Self {
        Self { name, most, under_way: AtomicUsize::new(0), refused: AtomicUsize::new(0) }
    }

    fn admit(&self) -> Result<(), Status> {
        let more = |calls| (calls < self.most).then_some(calls + 1);
        if self.under_way.fetch_update(Relaxed, Relaxed, more).is_ok() {
            return Ok(());
        }
        let before = self.refused.fetch_add(1, Relaxed);
        if before == 0 {
            tracing::warn!(most = self.most, "too many {}: some are refused", self.name);
        }
        let turn = TURN.saturating_mul(u32::try_from(before % TURNS).unwrap_or(0));
        Err(error::exhausted(
            "OVERLOADED",
            "the service has too much to do; repeat the call when the details say",
            FIRST_RETRY + turn,
        ))
    }

    /// Who is at the limit again and again is overloaded all the while: that is over when
    /// a quarter of the places is free.
    fn release(&self) {
        let left = self.under_way.fetch_sub(1, Relaxed) - 1;
        if left <= self.most - self.most / 4 && self.refused.load(Relaxed) > 0 {
            let refused = self.refused.swap(0, Relaxed);
            if refused > 0 {
                tracing::warn!(refused, "there is room for {} again", self.name);
            }
        }
    }
}

/// The place of a call among those under way.
#[derive(Debug)]
pub(super) struct Place(Arc<Kind>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn what_is_too_much_is_refused_with_a_time_to_come_again_and_each_kind_has_its_own_room() {
        let load = Load::of(2, 2);
        let held = [load.admit(false).unwrap(), load.admit(false).unwrap()];
        let delays: Vec<_> = (0..3)
            .map(|_| {
                let refused = load.admit(false).unwrap_err();
                assert_eq!(refused.code(), Code::ResourceExhausted);
                assert_eq!(error::reason(&refused).as_deref(), Some("OVERLOADED"));
                let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
                let push_back = refused.metadata().get("grpc-retry-pushback-ms").unwrap();
                assert_eq!(push_back.to_str().unwrap(), delay.as_millis().to_string());
                delay
            })
            .collect();
        assert_eq!(delays, [FIRST_RETRY, FIRST_RETRY + TURN, FIRST_RETRY + 2 * TURN]);
        assert!(load.admit(true).is_ok());
        drop(held);
        assert!(load.admit(false).is_ok());
    }

    #[test]
    fn an_overload_lasts_until_a_quarter_of_the_places_is_free() {
        let load = Load::of(4, 4);
        let mut held: Vec<_> = (0..4).map(|_| load.admit(false).unwrap()).collect();
        let refused = || load.unary.refused.load(Relaxed);
        load.admit(false).unwrap_err();
        load.admit(false).unwrap_err();
        assert_eq!(refused(), 2);
        held.pop();
        assert_eq!(refused(), 0);
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_the_count_is_that_of_the_places_and_never_beyond_the_limit(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0..8_usize), 0..64),
        ) {
            let load = Load::of(4, 4);
            let mut held = [Vec::new(), Vec::new()];
            for (streaming, comes, index) in steps {
                let places = &mut held[usize::from(streaming)];
                if comes {
                    let is_full = places.len() == 4;
                    let admitted = load.admit(streaming);
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
