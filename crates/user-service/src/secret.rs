//! Secrets that programs show instead of a password: refresh tokens and API keys. Each
//! is 32 random bytes behind a word that says what it is, so that a scanner of sources
//! and logs can find one that leaked. Only a digest is ever stored: nobody can guess
//! what it is of, so that it needs no salt and no slow hash, and can be looked up.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

/// What is stored of a secret: its SHA-256.
pub type Digest = [u8; 32];

/// What stands between the two parts of a refresh token.
const SEPARATOR: char = '.';

/// What is stored of a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshDigest {
    /// Of what it has in common with all tokens of its session.
    pub session: Digest,
    /// Of the whole token.
    pub token: Digest,
}

/// A secret in the form in which it is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The first refresh token of a session, made of unpredictable bytes: those that it
    /// has in common with all that follow it, and its own.
    pub fn refresh_token(session: [u8; 32], own: [u8; 32]) -> Self {
        Self::of("chandlery_refresh_", session).successor(own)
    }

    /// The refresh token that follows this one in its session.
    #[must_use]
    pub fn successor(&self, own: [u8; 32]) -> Self {
        Self(format!("{}{SEPARATOR}{}", self.session(), BASE64_URL_SAFE_NO_PAD.encode(own)))
    }

    /// An API key made of unpredictable bytes.
    pub fn api_key(bytes: [u8; 32]) -> Self {
        Self::of("chandlery_key_", bytes)
    }

    /// What somebody shows as a secret, whatever it is worth.
    pub fn shown(text: String) -> Self {
        Self(text)
    }

    fn of(word: &str, bytes: [u8; 32]) -> Self {
        Self(format!("{word}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// What to store of it, or to look it up by.
    pub fn digest(&self) -> Digest {
        sha256(&self.0)
    }

    /// What to store of a refresh token, or to look it up by.
    pub fn refresh_digest(&self) -> RefreshDigest {
        RefreshDigest { session: sha256(self.session()), token: self.digest() }
    }

    fn session(&self) -> &str {
        self.0.split_once(SEPARATOR).map_or(&self.0, |(session, _)| session)
    }

    /// The secret itself, to be shown to its owner.
    pub fn into_text(self) -> String {
        self.0
    }
}

fn sha256(text: &str) -> Digest {
    let mut stored = [0; 32];
    stored.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    stored
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_recognised_by_what_was_shown_and_by_nothing_else() {
        let key = Secret::api_key([7; 32]);
        let text = key.clone().into_text();
        assert!(text.starts_with("chandlery_key_") && text.len() == 57, "{text}");
        assert_eq!(Secret::shown(text.clone()).digest(), key.digest());
        for other in [Secret::refresh_token([7; 32], [7; 32]), Secret::api_key([8; 32])] {
            assert_ne!(other.digest(), key.digest());
        }
        assert!(!format!("{key:?}").contains(&text));
    }

    #[test]
    fn refresh_tokens_of_a_session_tell_that_they_are_of_one() {
        let first = Secret::refresh_token([7; 32], [1; 32]);
        let second = Secret::shown(first.clone().into_text()).successor([2; 32]);
        let third = second.successor([3; 32]);
        let digests = [&first, &second, &third].map(Secret::refresh_digest);
        assert!(digests.iter().all(|digest| digest.session == digests[0].session));
        assert_ne!(digests[0].token, digests[1].token);
        assert_ne!(digests[1].token, digests[2].token);
        let text = third.into_text();
        assert!(text.starts_with("chandlery_refresh_") && text.len() == 105, "{text}");
        for other in [Secret::refresh_token([8; 32], [1; 32]), Secret::shown(String::new())] {
            assert_ne!(other.refresh_digest().session, digests[0].session);
        }
    }
}
