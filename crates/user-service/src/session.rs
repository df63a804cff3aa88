//! What keeps a user signed in. A session is a chain of refresh tokens, each of which
//! is good for one successor. Pure functions.

use std::time::Duration;

use service_runtime::Timestamp;
use uuid::Uuid;

/// How long a refresh token is good: whoever stays away for longer signs in again.
pub const REFRESH_TOKEN_LIFETIME: Duration = Duration::from_hours(30 * 24);
/// How long a session lasts, however busy: what was stolen unnoticed is worthless then.
pub const SESSION_LIFETIME: Duration = Duration::from_hours(90 * 24);

/// Somebody who has signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The identifier.
    pub id: Uuid,
    /// Who has signed in.
    pub user_id: Uuid,
    /// When it ends at the latest.
    pub expire_time: Timestamp,
}

impl Session {
    /// A session that begins now.
    pub fn begin(id: Uuid, user_id: Uuid, now: Timestamp) -> Self {
        Self { id, user_id, expire_time: now.saturating_add(SESSION_LIFETIME) }
    }

    /// When a refresh token expires that is issued now.
    pub fn token_expire_time(&self, now: Timestamp) -> Timestamp {
        now.saturating_add(REFRESH_TOKEN_LIFETIME).min(self.expire_time)
    }
}

/// A refresh token as it is on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshToken {
    /// What it goes on with.
    pub session: Session,
    /// When it expires.
    pub expire_time: Timestamp,
    /// Whether it had its successor.
    pub is_used: bool,
}

/// What becomes of a session when a refresh token of it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on with another token, which expires then.
    GoOn(Timestamp),
    /// It stays as it is; the token is too old.
    Refuse,
    /// It ends for whoever is in it: the token was used before, so that two have it, one
    /// of whom stole it (RFC 9700, section 4.14.2).
    End,
}

impl RefreshToken {
    /// What it means that the token is shown now.
    pub fn show(&self, now: Timestamp) -> Decision {
        if self.is_used {
            Decision::End
        } else if now >= self.expire_time {
            Decision::Refuse
        } else {
            Decision::GoOn(self.session.token_expire_time(now))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_micros(0);

    fn token(session: Session, issued: Timestamp) -> RefreshToken {
        RefreshToken { session, expire_time: session.token_expire_time(issued), is_used: false }
    }

    #[test]
    fn a_session_goes_on_while_it_is_used_and_ends_after_90_days_all_the_same() {
        let day = |day: u64| START.saturating_add(Duration::from_hours(24 * day));
        let session = Session::begin(Uuid::nil(), Uuid::nil(), START);
        let mut current = token(session, START);
        for now in [29, 58, 87].map(day) {
            let Decision::GoOn(expire_time) = current.show(now) else { panic!("it goes on") };
            current = RefreshToken { expire_time, ..current };
        }
        assert_eq!(current.expire_time, day(90));
        assert_eq!(current.show(day(90)), Decision::Refuse);
        assert_eq!(token(session, START).show(day(30)), Decision::Refuse);
    }

    #[test]
    fn a_token_that_was_used_ends_its_session() {
        let session = Session::begin(Uuid::nil(), Uuid::nil(), START);
        let used = RefreshToken { is_used: true, ..token(session, START) };
        assert_eq!(used.show(START), Decision::End);
        assert_eq!(used.show(session.expire_time), Decision::End);
    }
}
