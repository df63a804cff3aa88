//! The keys that sign access tokens: which of them signs, which are published, and when
//! another is due, as functions of the keys and the time.
//!
//! A verifier may know keys as they were a while ago, so that a key is published before
//! its first signature, and until the last token that it signed has expired. Private keys
//! stand in the database as they are: whoever can read it can sign in as anyone, which is
//! why its file is its owner's alone. A system that has a key management service signs there.

use std::{fmt, time::Duration};

use service_runtime::{Timestamp, access_token::ACCESS_TOKEN_LIFETIME};
use uuid::Uuid;

/// How long a key signs before another takes its place.
pub const TERM: Duration = Duration::from_hours(24);
/// How long before its first signature a key is published: far longer than a verifier
/// believes the keys that it knows.
pub const NOTICE: Duration = Duration::from_mins(10);
/// How long after the last token of a key has expired it is still published: more than
/// clocks differ by.
const MARGIN: Duration = Duration::from_mins(10);

/// A private key in PKCS#8.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub Vec<u8>);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PrivateKey(…)")
    }
}

/// A key as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What the header of a token calls it.
    pub id: Uuid,
    /// The key itself.
    pub private_key: PrivateKey,
    /// From when on it signs, until another does.
    pub sign_time: Timestamp,
}

/// The keys on record, in the order in which they sign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

impl FromIterator<Key> for Keys {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_by_key(|key| (key.sign_time, key.id));
        Self(keys)
    }
}

impl Keys {
    /// The key that signs now. One whose time has not come signs only if the clock was
    /// set back behind all of them.
    pub fn signer(&self, now: Timestamp) -> Option<&Key> {
        self.0.iter().rev().find(|key| key.sign_time <= now).or(self.0.first())
    }

    /// The keys by which tokens are verified now.
    pub fn published(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| !self.is_over(key, now))
    }

    /// The keys that nobody needs any more.
    pub fn over(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| self.is_over(key, now))
    }

    /// From when on a key is to sign that is made now, if one is due. The first of all
    /// signs at once: no token was verified yet.
    pub fn due(&self, now: Timestamp) -> Option<Timestamp> {
        match self.0.last() {
            None => Some(now),
            Some(newest) => (now.saturating_add(NOTICE) >= newest.sign_time.saturating_add(TERM))
                .then(|| now.saturating_add(NOTICE)),
        }
    }

    /// Whether all tokens that a key has signed have expired.
    fn is_over(&self, key: &Key, now: Timestamp) -> bool {
        let successor = self.0.iter().find(|other| other.sign_time > key.sign_time);
        successor.is_some_and(|successor| {
            now > successor.sign_time.saturating_add(ACCESS_TOKEN_LIFETIME).saturating_add(MARGIN)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use service_runtime::access_token::KEYS_MAX_AGE;

    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn rotate(keys: &mut Keys, now: Timestamp) {
        let over: Vec<_> = keys.over(now).map(|key| key.id).collect();
        keys.0.retain(|key| !over.contains(&key.id));
        if let Some(sign_time) = keys.due(now) {
            let id = Uuid::from_u128(now.as_micros().unsigned_abs().into());
            keys.0.push(Key { id, private_key: PrivateKey(Vec::new()), sign_time });
        }
    }

    fn published(keys: &Keys, now: Timestamp) -> BTreeSet<Uuid> {
        keys.published(now).map(|key| key.id).collect()
    }

    #[test]
    fn a_key_is_announced_signs_for_a_day_and_goes_once_its_tokens_have_expired() {
        let at =
            |hours: u64, minutes| START.saturating_add(Duration::from_mins(hours * 60 + minutes));
        let mut keys = Keys::default();
        rotate(&mut keys, START);
        let first = keys.signer(START).unwrap().id;
        rotate(&mut keys, at(23, 49));
        assert_eq!(published(&keys, at(23, 49)).len(), 1);
        rotate(&mut keys, at(23, 50));
        assert_eq!(published(&keys, at(23, 50)).len(), 2);
        assert_eq!(keys.signer(at(23, 59)).unwrap().id, first);
        let second = keys.signer(at(24, 0)).unwrap().id;
        assert_ne!(second, first);
        assert!(published(&keys, at(24, 15)).contains(&first));
        assert_eq!(published(&keys, at(24, 16)), BTreeSet::from([second]));
        rotate(&mut keys, at(24, 16));
        assert_eq!(keys.0.len(), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_leaves_a_key_to_sign_with() {
        let mut keys = Keys::default();
        rotate(&mut keys, START);
        let earlier = START.saturating_sub(TERM);
        rotate(&mut keys, earlier);
        assert_eq!(keys.signer(earlier), keys.0.first());
        assert_eq!(keys.0.len(), 1);
    }

    proptest! {
        /// Whenever the sweep runs, and however long it does not.
        #[test]
        fn every_token_verifies_until_it_expires_by_the_keys_of_now_and_of_a_while_ago(
            steps in prop::collection::vec(prop_oneof![
                8 => 1_u64..120,
                4 => 120_u64..3_600,
                1 => 3_600_u64..200_000,
            ], 1..400),
        ) {
            let (mut keys, mut now) = (Keys::default(), START);
            let mut tokens: Vec<(Timestamp, Uuid)> = Vec::new();
            let mut fetched: BTreeMap<Timestamp, BTreeSet<Uuid>> = BTreeMap::new();
            for seconds in steps {
                rotate(&mut keys, now);
                let signer = keys.signer(now).unwrap().id;
                tokens.push((now.saturating_add(ACCESS_TOKEN_LIFETIME), signer));
                fetched.insert(now, published(&keys, now));
                tokens.retain(|(expiry, _)| *expiry > now);
                for (time, known) in fetched.range(now.saturating_sub(KEYS_MAX_AGE)..) {
                    for (_, key) in &tokens {
                        prop_assert!(known.contains(key), "{key} at {now} by the keys of {time}");
                    }
                }
                prop_assert!(keys.0.len() <= 3, "{keys:?}");
                now = now.saturating_add(Duration::from_secs(seconds));
            }
        }
    }
}
