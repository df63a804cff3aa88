//! What a user is. What a user can spend is [`ledger`](crate::ledger)'s matter.

use serde::{Deserialize, Serialize};
use service_runtime::Timestamp;
use uuid::Uuid;

/// An e-mail address as its owner writes it: something on either side of one `@`,
/// at most 254 characters, none of them white space or a control character.
///
/// Whether mail arrives there, only mail can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Email(String);

impl Email {
    /// An address as it is on record.
    pub(crate) fn on_record(text: String) -> Self {
        Self(text)
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form in which addresses are compared, without regard to case.
    pub fn folded(&self) -> String {
        self.0.to_lowercase()
    }
}

/// Text that is no e-mail address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not an e-mail address of at most 254 characters; send one, for example \"ada@example.com\""
)]
pub struct InvalidEmail;

impl TryFrom<String> for Email {
    type Error = InvalidEmail;

    fn try_from(text: String) -> Result<Self, InvalidEmail> {
        let (local, domain) = text.split_once('@').ok_or(InvalidEmail)?;
        let fits = !local.is_empty()
            && !domain.is_empty()
            && !domain.contains('@')
            && text.chars().count() <= 254
            && !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if fits { Ok(Self(text)) } else { Err(InvalidEmail) }
    }
}

/// What users say of themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Their address.
    pub email: Email,
    /// What to call them.
    pub display_name: String,
}

/// A person who can buy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The identifier.
    pub id: Uuid,
    /// What they say of themselves.
    pub profile: Profile,
    /// How often the profile was written, from 1.
    pub revision: i64,
    /// When the user was created.
    pub create_time: Timestamp,
    /// When the profile was last written.
    pub update_time: Timestamp,
}

impl User {
    /// What a writer must have seen to overwrite it (<https://google.aip.dev/154>).
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_something_on_either_side_of_one_at_sign() {
        for right in ["ada@example.com", "a@b", "Grace.Hopper+navy@example.com", "ä@ö.example"] {
            assert_eq!(Email::try_from(right.to_owned()).unwrap().as_str(), right);
        }
        let long = format!("{}@example.com", "a".repeat(243));
        for wrong in ["", "ada", "@", "@b", "a@", "a@b@c", "a @b", "a@b\n", "a\0@b", &long] {
            assert_eq!(Email::try_from(wrong.to_owned()), Err(InvalidEmail), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_that_differ_in_case_fold_to_the_same() {
        let fold = |text: &str| Email::try_from(text.to_owned()).unwrap().folded();
        assert_eq!(fold("Ada@Example.COM"), fold("ada@example.com"));
        assert_eq!(fold("ÉMILE@example.com"), fold("émile@example.com"));
    }
}
