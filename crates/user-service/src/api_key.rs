//! What an API key is: the name under which a program speaks for a user, until it is
//! revoked. The key itself is a [`Secret`](crate::secret::Secret).

use std::time::Duration;

use service_runtime::Timestamp;
use uuid::Uuid;

/// How many valid keys a user may have.
pub const MOST_PER_USER: i64 = 100;
/// How long a key is kept on record that is not valid any more, for whoever wants to know
/// what became of it.
pub const RETENTION: Duration = Duration::from_hours(30 * 24);

/// What is on record of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The identifier.
    pub id: Uuid,
    /// The user in whose name it speaks.
    pub user_id: Uuid,
    /// What it is for.
    pub display_name: String,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it expires, if it ever does.
    pub expire_time: Option<Timestamp>,
    /// When it was revoked, if it was.
    pub revoke_time: Option<Timestamp>,
}

impl ApiKey {
    /// Whether the key is good for an access token.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoke_time.is_none() && self.expire_time.is_none_or(|expiry| now < expiry)
    }

    /// The key once revoked, for the first time.
    #[must_use]
    pub fn revoke(self, now: Timestamp) -> Self {
        Self { revoke_time: self.revoke_time.or(Some(now)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_good_until_it_expires_or_is_revoked() {
        let time = Timestamp::from_micros;
        let key = ApiKey {
            id: Uuid::nil(),
            user_id: Uuid::nil(),
            display_name: "Till".to_owned(),
            create_time: time(0),
            expire_time: Some(time(10)),
            revoke_time: None,
        };
        assert!(key.is_valid(time(9)) && !key.is_valid(time(10)));
        let revoked = key.revoke(time(5));
        assert!(!revoked.is_valid(time(6)));
        assert_eq!(revoked.clone().revoke(time(7)), revoked);
    }
}
