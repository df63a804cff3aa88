//! Secrets that programs show instead of a password: refresh tokens and API keys. Each
//! is 32 random bytes behind a word that says what it is, so that a scanner of sources
//! and logs can find one that leaked. Only a digest is ever stored: nobody can guess
//! what it is of, so that it needs no salt and no slow hash, and can be looked up.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

/// What is stored of a secret: its SHA-256.
pub type Digest = [u8; 32];

/// A secret in the form in which it is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A refresh token made of unpredictable bytes.
    pub fn refresh_token(bytes: [u8; 32]) -> Self {
        Self::of("chandlery_refresh_", bytes)
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
        let mut stored = [0; 32];
        stored.copy_from_slice(digest(&SHA256, self.0.as_bytes()).as_ref());
        stored
    }

    /// The secret itself, to be shown to its owner.
    pub fn into_text(self) -> String {
        self.0
    }
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
        for other in [Secret::refresh_token([7; 32]), Secret::api_key([8; 32])] {
            assert_ne!(other.digest(), key.digest());
        }
        assert!(!format!("{key:?}").contains(&text));
    }
}
