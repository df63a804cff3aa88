//! How users sign in, and how they prove later that they did. What is decided here by
//! [`session`](crate::session), [`api_key`](crate::api_key) and [`signing`](crate::signing) is
//! kept by the store; the access tokens themselves are kept nowhere.

use service_runtime::{
    Clock, Identifiers, Timestamp,
    access_token::{SigningKey, TokenIssuer},
};
use uuid::Uuid;

use crate::{
    error::Error,
    password::{NewPassword, Password, PasswordHash, Passwords, Proof},
    secret::Secret,
    session::Session,
    signing::{Key, Keys, PrivateKey},
    store::{SignedIn, Store},
    user::Email,
};

/// Signs users in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access<S> {
    pub(crate) store: S,
    passwords: Passwords,
    issuer: TokenIssuer,
    pub(crate) clock: Clock,
    pub(crate) identifiers: Identifiers,
}

/// What a user who has signed in shows.
pub struct Tokens {
    /// The user.
    pub user_id: Uuid,
    /// A JWT.
    pub access_token: String,
    /// When the access token expires.
    pub access_token_expire_time: Timestamp,
    /// What goes on with the session, and when it expires; none for an API key.
    pub refresh_token: Option<(Secret, Timestamp)>,
}

impl<S: Store> Access<S> {
    /// Signs in whoever is in `store`.
    pub fn new(
        store: S,
        passwords: Passwords,
        issuer: TokenIssuer,
        clock: Clock,
        identifiers: Identifiers,
    ) -> Self {
        Self { store, passwords, issuer, clock, identifiers }
    }

    /// Begins a session. How long it takes to refuse does not tell who has an account.
    pub async fn sign_in(&self, email: &Email, password: Password) -> Result<Tokens, Error> {
        let (user_id, hash) = self.store.password_by_email(email).await?.unzip();
        let is_right = self.passwords.verify(password, hash.clone()).await?;
        let (Some(user_id), Some(hash), true) = (user_id, hash, is_right) else {
            return Err(Error::SignInFailed);
        };
        let now = self.clock.now();
        let signer = self.signer(now).await?;
        let token = Secret::refresh_token(self.identifiers.secret(), self.identifiers.secret());
        let session = Session::begin(user_id, token.refresh_digest(), now);
        let signed_in = self.store.begin_session(session, hash).await?;
        self.tokens(&signer, signed_in, token, now)
    }

    /// Goes on with a session, or ends it if its token was used before.
    pub async fn refresh(&self, shown: &Secret) -> Result<Tokens, Error> {
        let now = self.clock.now();
        // Before the token is used up, since what fails after that ends in signing in anew.
        let signer = self.signer(now).await?;
        let next = shown.successor(self.identifiers.secret());
        let signed_in = self.store.refresh(shown.refresh_digest(), next.digest(), now).await?;
        self.tokens(&signer, signed_in, next, now)
    }

    /// Exchanges an API key for an access token.
    pub async fn exchange(&self, api_key: &Secret) -> Result<Tokens, Error> {
        let now = self.clock.now();
        let signer = self.signer(now).await?;
        let (user_id, role) = self.store.user_of_api_key(api_key.digest(), now).await?;
        let (access_token, access_token_expire_time) =
            self.issuer.issue(&signer, user_id, role, now)?;
        Ok(Tokens { user_id, access_token, access_token_expire_time, refresh_token: None })
    }

    /// What to put on record of a password.
    pub async fn hash(&self, password: Password) -> Result<PasswordHash, Error> {
        Ok(self.passwords.hash(password, self.identifiers.secret()).await?)
    }

    /// What it takes to replace the password of a user, who shows the `current` one if
    /// he does it himself.
    pub async fn replace_password(
        &self,
        user_id: Uuid,
        current: Option<Password>,
        new: Password,
    ) -> Result<NewPassword, Error> {
        let proof = match current {
            None => Proof::NotNeeded,
            Some(current) => {
                let on_record = self.store.password(user_id).await?;
                let is_right = self.passwords.verify(current, on_record.clone()).await?;
                on_record.filter(|_| is_right).map_or(Proof::Failed, Proof::Shown)
            }
        };
        Ok(NewPassword { hash: self.hash(new).await?, proof })
    }

    /// The keys by which access tokens are verified.
    pub async fn published_keys(&self) -> Result<Vec<SigningKey>, Error> {
        let now = self.clock.now();
        let keys = self.signing_keys(now).await?;
        keys.published(now).map(signing_key).collect()
    }

    /// The keys on record, once another has been made if one is due.
    pub async fn signing_keys(&self, now: Timestamp) -> Result<Keys, Error> {
        let keys = self.store.signing_keys().await?;
        if keys.due(now).is_none() && keys.over(now).next().is_none() {
            return Ok(keys);
        }
        let private_key = SigningKey::generate(&self.identifiers.secret())?;
        let id = self.identifiers.next();
        self.store.rotate_signing_keys(id, PrivateKey(private_key), now).await
    }

    async fn signer(&self, now: Timestamp) -> Result<SigningKey, Error> {
        let keys = self.signing_keys(now).await?;
        signing_key(keys.signer(now).ok_or(Error::NoSigningKey)?)
    }

    fn tokens(
        &self,
        signer: &SigningKey,
        SignedIn { user_id, role, token_expire_time }: SignedIn,
        refresh_token: Secret,
        now: Timestamp,
    ) -> Result<Tokens, Error> {
        let (access_token, access_token_expire_time) =
            self.issuer.issue(signer, user_id, role, now)?;
        let refresh_token = Some((refresh_token, token_expire_time));
        Ok(Tokens { user_id, access_token, access_token_expire_time, refresh_token })
    }
}

fn signing_key(key: &Key) -> Result<SigningKey, Error> {
    Ok(SigningKey::from_pkcs8(key.id.to_string(), &key.private_key.0)?)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use rand::{SeedableRng, rngs::StdRng};
    use service_runtime::RequestKey;

    use super::*;
    use crate::{
        store::{Credentials, Sqlite, Users},
        user::Profile,
    };

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    #[tokio::test]
    async fn a_refresh_token_is_not_used_up_if_nothing_can_be_signed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(folder.path().join("user.db")).await.unwrap();
        let clock = Clock::new(|| NOW);
        let identifiers = Identifiers::new(clock.clone(), StdRng::seed_from_u64(7));
        let passwords = Passwords::new(NonZeroUsize::MIN);
        let issuer = TokenIssuer::new("chandlery.local", "chandlery");
        let access = Access::new(store.clone(), passwords, issuer, clock, identifiers.clone());
        let broken = PrivateKey(b"no key".to_vec());
        store.rotate_signing_keys(identifiers.next(), broken, NOW).await.unwrap();

        let id = identifiers.next();
        let email = Email::try_from("ada@example.com".to_owned()).unwrap();
        let profile = Profile { email, display_name: "Ada".to_owned() };
        let password = Password::chosen("correct horse".to_owned()).unwrap();
        let hash = access.hash(password).await.unwrap();
        let key = RequestKey { principal: "test".to_owned(), request_id: id, fingerprint: [0; 32] };
        store.create(key, id, profile, Some(hash.clone()), NOW).await.unwrap();
        let token = Secret::refresh_token([1; 32], [2; 32]);
        let session = Session::begin(id, token.refresh_digest(), NOW);
        store.begin_session(session, hash).await.unwrap();

        let failed = access.refresh(&token).await.map(drop);
        assert!(matches!(failed, Err(Error::SigningKey(_))), "{failed:?}");
        store.refresh(token.refresh_digest(), [0; 32], NOW).await.unwrap();
    }
}
