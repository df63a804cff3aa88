//! Passwords: hashed with Argon2id (RFC 9106) on threads of their own, and never more of
//! them at once than the machine has cores for. A hash takes tens of milliseconds and
//! 19 MiB on purpose, so that whoever asks for many must not starve everything else.

use std::{fmt, num::NonZeroUsize, sync::Arc};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{Error, PasswordHasher, PasswordVerifier, phc},
};
use tokio::sync::Semaphore;

/// 19 MiB, two passes, one lane: the least that OWASP recommends. RFC 9106 recommends
/// 64 MiB and more, which in a container of a few hundred MiB would let fewer people
/// sign in at once than it has cores.
const PARAMETERS: Params = Params::DEFAULT;
/// How many passwords may wait for each thread: about a second's worth of work, which
/// is well within the deadlines of those who wait.
const WAITING_PER_THREAD: usize = 32;

/// What a user signs in with.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// Text that is no password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("has {count} characters; send {least} to {MOST}", MOST = Password::MOST_CHARACTERS)]
pub struct InvalidPassword {
    count: usize,
    least: usize,
}

impl Password {
    const MOST_CHARACTERS: usize = 128;

    /// A password that somebody chooses, of 8 to 128 characters.
    pub fn chosen(text: String) -> Result<Self, InvalidPassword> {
        Self::of(text, 8)
    }

    /// A password that somebody shows, which may have been chosen by other rules.
    pub fn shown(text: String) -> Result<Self, InvalidPassword> {
        Self::of(text, 1)
    }

    fn of(text: String, least: usize) -> Result<Self, InvalidPassword> {
        let count = text.chars().count();
        if (least..=Self::MOST_CHARACTERS).contains(&count) {
            Ok(Self(text))
        } else {
            Err(InvalidPassword { count, least })
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(…)")
    }
}

/// What is on record of a password: a PHC string, which carries its own salt and
/// parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// A hash as it is on record.
    pub(crate) fn on_record(text: String) -> Self {
        Self(text)
    }

    /// The hash as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PasswordHash(…)")
    }
}

/// A password that is to replace the one on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPassword {
    /// What to put on record.
    pub hash: PasswordHash,
    /// Why it may be replaced.
    pub proof: Proof,
}

/// What entitles to replace a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The role of whoever asks.
    NotNeeded,
    /// The password that has this hash was shown.
    Shown(PasswordHash),
    /// Another password was shown. This is told where the request can no longer turn out
    /// to be a repeat, whose first sending changed the password.
    Failed,
}

impl Proof {
    /// Whether the password on record may be replaced.
    pub fn holds(&self, on_record: Option<&PasswordHash>) -> bool {
        match self {
            Self::NotNeeded => true,
            Self::Shown(hash) => on_record == Some(hash),
            Self::Failed => false,
        }
    }
}

/// Why a password could not be hashed or verified.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Too many wait already.
    #[error("too many passwords wait to be verified; repeat the call in a second")]
    TooMany,
    /// The work could not be done.
    #[error("a password could not be hashed: {0}")]
    Broken(String),
}

/// Hashes and verifies passwords. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Passwords {
    /// Whoever waits or works has one.
    places: Arc<Semaphore>,
    /// Whoever works has one.
    threads: Arc<Semaphore>,
}

impl Passwords {
    /// Works on so many passwords at once.
    pub fn new(threads: NonZeroUsize) -> Self {
        let threads = threads.get();
        Self {
            places: Arc::new(Semaphore::new(threads * (WAITING_PER_THREAD + 1))),
            threads: Arc::new(Semaphore::new(threads)),
        }
    }

    /// What to put on record of a password. The salt is different every time.
    pub async fn hash(&self, password: Password, salt: [u8; 32]) -> Result<PasswordHash, Failure> {
        let hash = self.work(move || hash(&password, &salt)).await?;
        hash.map_err(|error| Failure::Broken(error.to_string()))
    }

    /// Whether this is the password on record. That there is none takes as long to say.
    pub async fn verify(
        &self,
        password: Password,
        on_record: Option<PasswordHash>,
    ) -> Result<bool, Failure> {
        let outcome = self.work(move || match on_record {
            Some(on_record) => {
                let on_record = phc::PasswordHash::new(on_record.as_str())?;
                argon2().verify_password(password.0.as_bytes(), &on_record)
            }
            None => hash(&password, &[0; 32]).and(Err(Error::PasswordInvalid)),
        });
        match outcome.await? {
            Ok(()) => Ok(true),
            Err(Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(Failure::Broken(error.to_string())),
        }
    }

    /// Does work on a thread of its own once there is one to spare. Whoever goes away
    /// leaves the queue; work that was begun holds its thread to the end.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let _place = self.places.try_acquire().map_err(|_| Failure::TooMany)?;
        let broken = |error: &dyn fmt::Display| Failure::Broken(error.to_string());
        let threads = Arc::clone(&self.threads);
        let thread = threads.acquire_owned().await.map_err(|error| broken(&error))?;
        let working = tokio::task::spawn_blocking(move || {
            let _thread = thread;
            work()
        });
        working.await.map_err(|error| broken(&error))
    }
}

fn hash(password: &Password, salt: &[u8]) -> Result<PasswordHash, Error> {
    let hash: phc::PasswordHash = argon2().hash_password_with_salt(password.0.as_bytes(), salt)?;
    Ok(PasswordHash(hash.to_string()))
}

fn argon2() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, PARAMETERS)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::{FutureExt, future::join_all};
    use tokio::sync::oneshot;

    use super::*;

    fn password(text: &str) -> Password {
        Password::chosen(text.to_owned()).unwrap()
    }

    fn passwords() -> Passwords {
        Passwords::new(NonZeroUsize::MIN)
    }

    #[tokio::test]
    async fn a_hash_verifies_its_own_password_alone() {
        let hash = async |salt| passwords().hash(password("hunter42"), salt).await.unwrap();
        assert_ne!(hash([8; 32]).await, hash([7; 32]).await);
        let hash = hash([7; 32]).await;
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.as_str());
        let verify = async |text, hash| passwords().verify(password(text), hash).await.unwrap();
        assert!(verify("hunter42", Some(hash.clone())).await);
        assert!(!verify("Hunter42", Some(hash)).await);
        assert!(!verify("hunter42", None).await);
    }

    #[test]
    fn a_password_that_is_chosen_has_8_to_128_characters_and_nothing_shows_it() {
        for right in ["ünïcödé!", &"x".repeat(128)] {
            assert!(Password::chosen(right.to_owned()).is_ok());
        }
        for wrong in ["", "hunter2", &"x".repeat(129)] {
            assert!(Password::chosen(wrong.to_owned()).is_err());
        }
        assert!(Password::shown("hunter2".to_owned()).is_ok());
        let hash = PasswordHash::on_record("hunter42".to_owned());
        let new = NewPassword { hash: hash.clone(), proof: Proof::Shown(hash) };
        assert!(!format!("{:?} {new:?}", password("hunter42")).contains("hunter42"));
    }

    #[tokio::test]
    async fn whoever_finds_the_queue_full_is_sent_away_and_whoever_leaves_makes_room() {
        let passwords = passwords();
        let (go_on, held) = mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let mut working = Box::pin(passwords.work(move || {
            let _ = begun.send(());
            let _ = held.recv();
        }));
        assert!(working.as_mut().now_or_never().is_none());
        has_begun.await.unwrap();

        let wait = || {
            let mut waiting = Box::pin(passwords.work(|| ()));
            assert!(waiting.as_mut().now_or_never().is_none());
            waiting
        };
        let mut waiting: Vec<_> = (0..WAITING_PER_THREAD).map(|_| wait()).collect();
        let refused = passwords.work(|| ()).await;
        assert!(matches!(refused, Err(Failure::TooMany)), "{refused:?}");
        waiting.pop();
        waiting.push(wait());
        drop(go_on);
        working.await.unwrap();
        assert!(join_all(waiting).await.iter().all(Result::is_ok));
    }
}
