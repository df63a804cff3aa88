//! What keeps a user signed in. A session is a chain of refresh tokens, each of which is
//! good for one successor. The last alone is on record: every token tells of which session
//! it is, so that any other one was used before, however long ago. Pure functions.

use std::time::Duration;

use service_runtime::Timestamp;
use uuid::Uuid;

use crate::secret::{Digest, RefreshDigest};

/// How long a refresh token is good: whoever stays away for longer signs in again.
pub const REFRESH_TOKEN_LIFETIME: Duration = Duration::from_hours(30 * 24);
/// How long a session lasts, however busy: what was stolen unnoticed is worthless then.
pub const SESSION_LIFETIME: Duration = Duration::from_hours(90 * 24);

/// Somebody who has signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The digest of what all of its tokens have in common.
    pub id: Digest,
    /// Who has signed in.
    pub user_id: Uuid,
    /// When it ends at the latest.
    pub expire_time: Timestamp,
    /// The digest of the token that is good for a successor.
    pub token: Digest,
    /// When that token expires.
    pub token_expire_time: Timestamp,
}

/// What becomes of a session when a refresh token of it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on like this, with another token.
    GoOn(Session),
    /// It stays as it is; the token is too old.
    Refuse,
    /// It ends for whoever is in it: the token was used before, so that two have it, one
    /// of whom stole it (RFC 9700, section 4.14.2).
    End,
}

impl Session {
    /// A session that begins now, with its first token.
    pub fn begin(user_id: Uuid, first: RefreshDigest, now: Timestamp) -> Self {
        let expire_time = now.saturating_add(SESSION_LIFETIME);
        let RefreshDigest { session: id, token } = first;
        Self { id, user_id, expire_time, token, token_expire_time: now }.with(token, now)
    }

    /// What it means that a token of the session is shown now. If it is good for a
    /// successor, that is `next`.
    pub fn show(self, token: Digest, next: Digest, now: Timestamp) -> Decision {
        if token != self.token {
            Decision::End
        } else if now >= self.token_expire_time {
            Decision::Refuse
        } else {
            Decision::GoOn(self.with(next, now))
        }
    }

    fn with(self, token: Digest, now: Timestamp) -> Self {
        let token_expire_time = now.saturating_add(REFRESH_TOKEN_LIFETIME).min(self.expire_time);
        Self { token, token_expire_time, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_micros(0);

    fn day(day: u64) -> Timestamp {
        START.saturating_add(Duration::from_hours(24 * day))
    }

    fn session() -> Session {
        let first = RefreshDigest { session: [7; 32], token: [0; 32] };
        Session::begin(Uuid::nil(), first, START)
    }

    #[test]
    fn a_session_goes_on_while_it_is_used_and_ends_after_90_days_all_the_same() {
        let mut current = session();
        for (next, now) in [(1, day(29)), (2, day(58)), (3, day(87))] {
            let Decision::GoOn(on) = current.show(current.token, [next; 32], now) else {
                panic!("it goes on")
            };
            assert_eq!((on.id, on.token), (current.id, [next; 32]));
            current = on;
        }
        assert_eq!(current.token_expire_time, day(90));
        assert_eq!(current.show(current.token, [4; 32], day(90)), Decision::Refuse);
        assert_eq!(session().show([0; 32], [1; 32], day(30)), Decision::Refuse);
    }

    #[test]
    fn a_token_that_was_used_ends_its_session_however_long_ago_that_was() {
        let mut current = session();
        for next in 1..=200 {
            let Decision::GoOn(on) = current.show(current.token, [next; 32], START) else {
                panic!("it goes on")
            };
            current = on;
            for used in [0, next - 1] {
                assert_eq!(current.show([used; 32], [0; 32], START), Decision::End);
                assert_eq!(current.show([used; 32], [0; 32], day(90)), Decision::End);
            }
        }
    }
}
