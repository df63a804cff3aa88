//! What a user is, and who may see and change it. What a user can spend is
//! [`ledger`](crate::ledger)'s matter, and how he signs in [`access`](crate::access)'s.

use serde::{Deserialize, Serialize};
use service_runtime::{Actor, Role, Timestamp, has_direction_marks};
use uuid::Uuid;

use crate::password::{NewPassword, PasswordHash};

/// An e-mail address as its owner writes it: something on either side of one `@`,
/// at most 254 characters, none of them white space, a control character or an invisible
/// mark of direction.
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
            && !text.chars().any(|c| c.is_whitespace() || c.is_control())
            && !has_direction_marks(&text);
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
    /// What they may do.
    pub role: Role,
    /// How often the user was written, from 1.
    pub revision: i64,
    /// When the user was created.
    pub create_time: Timestamp,
    /// When the user was last written.
    pub update_time: Timestamp,
    /// When the user was deleted.
    pub delete_time: Option<Timestamp>,
}

/// What is to change of a user. What is none stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Another address.
    pub email: Option<Email>,
    /// Another name.
    pub display_name: Option<String>,
    /// What the user may do from the next token on.
    pub role: Option<Role>,
}

/// A change of a user, and what it depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// What the user must still be, if that matters.
    pub etag: Option<String>,
    /// What changes.
    pub changes: Changes,
    /// A new password.
    pub password: Option<NewPassword>,
}

/// Whether an actor may change what a user in this role signs in with. Staff may for
/// customers and for itself: who could for other staff would stay in under their names once
/// his own role is taken from him.
pub fn admit_to_credentials(actor: Actor, user_id: Uuid, role: Role) -> Result<(), Refusal> {
    match actor {
        Actor::Operator => Ok(()),
        Actor::Staff(_) if role == Role::Customer => Ok(()),
        Actor::Customer(own) | Actor::Staff(own) if own == user_id => Ok(()),
        Actor::Workload | Actor::Customer(_) | Actor::Staff(_) => {
            Err(Refusal::CredentialsNotAllowed(user_id))
        }
    }
}

/// A no to a change of a user. Nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The user is not as the caller last saw it.
    #[error("user {0} was changed since it was read; read it again and decide anew")]
    EtagStale(Uuid),
    /// A password was to be replaced by somebody who does not know it.
    #[error("current_password is not the password of the user; send the right one")]
    PasswordWrong,
    /// The role was to be changed by somebody who is not the operator.
    #[error("only the operator changes what a user may do; leave the role as it is, or out")]
    RoleNotAllowed,
    /// What a user signs in with was to be changed by somebody who may not.
    #[error(
        "what user {0} signs in with is changed by that user or the operator alone; ask one of them"
    )]
    CredentialsNotAllowed(Uuid),
}

impl User {
    /// What a writer must have seen to overwrite it (<https://google.aip.dev/154>).
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.revision)
    }

    /// The user after an update by an actor; the same if it changes nothing. `password` is
    /// the one on record. What is sent back as it was read is no change, and needs no leave.
    pub fn update(
        self,
        actor: Actor,
        update: &Update,
        password: Option<&PasswordHash>,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        self.match_etag(update.etag.as_deref())?;
        let Changes { email, display_name, role } = update.changes.clone();
        let profile = Profile {
            email: email.unwrap_or_else(|| self.profile.email.clone()),
            display_name: display_name.unwrap_or_else(|| self.profile.display_name.clone()),
        };
        let role = role.unwrap_or(self.role);
        if role != self.role && actor != Actor::Operator {
            return Err(Refusal::RoleNotAllowed);
        }
        if update.password.is_some() || profile.email != self.profile.email {
            admit_to_credentials(actor, self.id, self.role)?;
        }
        if update.password.as_ref().is_some_and(|new| !new.proof.holds(password)) {
            return Err(Refusal::PasswordWrong);
        }
        if update.password.is_none() && (&profile, role) == (&self.profile, self.role) {
            return Ok(self);
        }
        Ok(Self { profile, role, revision: self.revision + 1, update_time: now, ..self })
    }

    /// The user once deleted. One who was deleted before is the answer again, whatever
    /// the etag.
    pub fn delete(self, etag: Option<&str>, now: Timestamp) -> Result<Self, Refusal> {
        if self.delete_time.is_some() {
            return Ok(self);
        }
        self.match_etag(etag)?;
        let revision = self.revision + 1;
        Ok(Self { revision, update_time: now, delete_time: Some(now), ..self })
    }

    fn match_etag(&self, etag: Option<&str>) -> Result<(), Refusal> {
        if etag.is_none_or(|etag| etag == self.etag()) {
            Ok(())
        } else {
            Err(Refusal::EtagStale(self.id))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::password::Proof;

    #[test]
    fn an_address_has_something_on_either_side_of_one_at_sign() {
        for right in ["ada@example.com", "a@b", "Grace.Hopper+navy@example.com", "ä@ö.example"] {
            assert_eq!(Email::try_from(right.to_owned()).unwrap().as_str(), right);
        }
        let long = format!("{}@example.com", "a".repeat(243));
        for wrong in
            ["", "ada", "@", "@b", "a@", "a@b@c", "a @b", "a@b\n", "a\0@b", "a\u{200f}@b", &long]
        {
            assert_eq!(Email::try_from(wrong.to_owned()), Err(InvalidEmail), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_that_differ_in_case_fold_to_the_same() {
        let fold = |text: &str| Email::try_from(text.to_owned()).unwrap().folded();
        assert_eq!(fold("Ada@Example.COM"), fold("ada@example.com"));
        assert_eq!(fold("ÉMILE@example.com"), fold("émile@example.com"));
    }

    const THEN: Timestamp = Timestamp::from_micros(1);
    const NOW: Timestamp = Timestamp::from_micros(2);

    fn ada() -> User {
        let email = Email::try_from("ada@example.com".to_owned()).unwrap();
        User {
            id: Uuid::from_u128(0xada),
            profile: Profile { email, display_name: "Ada".to_owned() },
            role: Role::Customer,
            revision: 1,
            create_time: THEN,
            update_time: THEN,
            delete_time: None,
        }
    }

    fn rename(name: &str) -> Changes {
        Changes { display_name: Some(name.to_owned()), ..Changes::default() }
    }

    fn update(
        user: User,
        actor: Actor,
        changes: &Changes,
        password: Option<&NewPassword>,
    ) -> Result<User, Refusal> {
        let (changes, password) = (changes.clone(), password.cloned());
        user.update(actor, &Update { etag: None, changes, password }, None, NOW)
    }

    #[test]
    fn only_the_operator_changes_a_role_and_anyone_may_send_it_back_as_it_is() {
        let [promotion, same] =
            [Role::Staff, Role::Customer].map(|role| Changes { role: Some(role), ..rename("Eve") });
        let promoted = update(ada(), Actor::Operator, &promotion, None).unwrap();
        assert_eq!(promoted.role, Role::Staff);
        for actor in [Actor::Customer(ada().id), Actor::Staff(ada().id), Actor::Staff(Uuid::nil())]
        {
            assert_eq!(update(ada(), actor, &promotion, None), Err(Refusal::RoleNotAllowed));
            let renamed = update(ada(), actor, &same, None).unwrap();
            assert_eq!((renamed.role, renamed.revision), (Role::Customer, 2));
        }
    }

    #[test]
    fn staff_changes_what_customers_sign_in_with_and_other_staff_does_not() {
        let [own, other] = [ada().id, Uuid::from_u128(1)].map(Actor::Staff);
        let customer = ada();
        let staff = User { role: Role::Staff, ..ada() };
        let email = |text: &str| Some(Email::try_from(text.to_owned()).unwrap());
        let readdress = Changes { email: email("eve@example.com"), ..Changes::default() };
        let as_it_is = Changes { email: email("ada@example.com"), ..rename("Countess") };
        let hash = PasswordHash::on_record("hash".to_owned());
        let password = NewPassword { hash, proof: Proof::NotNeeded };
        for (changes, password) in [
            (&readdress, None),
            (&Changes::default(), Some(&password)),
            (&readdress, Some(&password)),
        ] {
            let refused = Err(Refusal::CredentialsNotAllowed(staff.id));
            assert_eq!(update(staff.clone(), other, changes, password), refused);
            for (user, actor) in
                [(&staff, own), (&staff, Actor::Operator), (&customer, other), (&customer, own)]
            {
                update(user.clone(), actor, changes, password).unwrap();
            }
        }
        let renamed = update(staff, other, &as_it_is, None).unwrap();
        assert_eq!(renamed.profile.display_name, "Countess");
    }

    #[test]
    fn an_update_changes_the_etag_if_it_changes_anything() {
        let renamed = update(ada(), Actor::Operator, &rename("Augusta"), None).unwrap();
        assert_eq!((renamed.revision, renamed.update_time), (2, NOW));
        assert_eq!(renamed.profile.email, ada().profile.email);
        assert_eq!(update(ada(), Actor::Operator, &rename("Ada"), None), Ok(ada()));

        let stale =
            Update { etag: Some(ada().etag()), changes: rename("Ada"), ..Update::default() };
        let outcome = renamed.update(Actor::Operator, &stale, None, NOW);
        assert_eq!(outcome, Err(Refusal::EtagStale(ada().id)));
    }

    #[test]
    fn a_deletion_is_answered_again_whatever_its_etag() {
        assert_eq!(ada().delete(Some("\"2\""), NOW), Err(Refusal::EtagStale(ada().id)));
        let deleted = ada().delete(Some("\"1\""), NOW).unwrap();
        assert_eq!((deleted.delete_time, deleted.revision), (Some(NOW), 2));
        let later = Timestamp::from_micros(3);
        assert_eq!(deleted.clone().delete(Some("\"1\""), later), Ok(deleted));
    }

    proptest! {
        #[test]
        fn an_address_is_written_as_it_was_read(text in r"\PC{0,9}@?\PC{1,250}|(?s).{0,9}@.{0,9}") {
            if let Ok(email) = Email::try_from(text.clone()) {
                prop_assert_eq!(text.matches('@').count(), 1);
                prop_assert!(text.chars().count() <= 254 && !text.contains(char::is_whitespace));
                prop_assert_eq!(email.as_str(), text);
            }
        }
    }
}
