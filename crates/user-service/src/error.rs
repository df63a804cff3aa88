//! Everything that can go wrong, and what callers see of it.

use std::time::Duration;

use service_runtime::{
    NotOwner, RequestIdReused, access_token::InvalidKey, exhausted, internal, refusal,
    refusal_about, sqlite,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{api_key, ledger::BalanceLimit, password, payment::Refusal, user};

/// When whoever finds the queue of passwords full may try again.
const PASSWORD_RETRY_DELAY: Duration = Duration::from_secs(1);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such user.
    #[error("there is no user {0}; send the id that SignIn or CreateUser answered")]
    UserNotFound(Uuid),
    /// The address belongs to another user.
    #[error("another user has the address; choose another")]
    EmailTaken,
    /// A customer names another user.
    #[error(transparent)]
    NotOwner(#[from] NotOwner),
    /// A user, or what he signs in with, cannot be changed as demanded.
    #[error(transparent)]
    User(#[from] user::Refusal),
    /// The address or the password is wrong.
    #[error("the address or the password is wrong; correct it, or create a user")]
    SignInFailed,
    /// The refresh token is unknown or too old, or its session is over.
    #[error("the refresh token is not good any more; sign in again")]
    RefreshTokenInvalid,
    /// A refresh token of this user was used twice, which ended the session.
    #[error("the refresh token is not good any more; sign in again")]
    RefreshTokenReused(Uuid),
    /// The API key is unknown, expired or revoked.
    #[error("the API key is unknown, expired or revoked; create another with CreateApiKey")]
    ApiKeyInvalid,
    /// There is no such API key, or none that the caller may see.
    #[error("there is no API key {0}; ListApiKeys tells which there are")]
    ApiKeyNotFound(Uuid),
    /// The user has too many keys.
    #[error("the user has {} API keys; revoke one that nobody uses", api_key::MOST_PER_USER)]
    TooManyApiKeys,
    /// A password could not be hashed or verified.
    #[error(transparent)]
    Password(#[from] password::Failure),
    /// A signing key cannot be used.
    #[error(transparent)]
    SigningKey(#[from] InvalidKey),
    /// There is no signing key.
    #[error("there is no signing key")]
    NoSigningKey,
    /// The request identifier belongs to another request.
    #[error(transparent)]
    RequestIdReused(#[from] RequestIdReused),
    /// The ledger says no to a deposit.
    #[error(transparent)]
    BalanceLimit(#[from] BalanceLimit),
    /// The ledger says no to a purchase.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] sqlx::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let user = |id: Uuid| [("user_id", id.to_string())];
        match error {
            Error::UserNotFound(id) => {
                refusal_about(Code::NotFound, "USER_NOT_FOUND", message, user(id))
            }
            Error::EmailTaken => refusal(Code::AlreadyExists, "EMAIL_TAKEN", message),
            Error::NotOwner(NotOwner(id)) => {
                refusal_about(Code::PermissionDenied, "NOT_OWNER", message, user(id))
            }
            Error::User(user::Refusal::EtagStale(id)) => {
                refusal_about(Code::Aborted, "ETAG_STALE", message, user(id))
            }
            Error::User(user::Refusal::PasswordWrong) => {
                refusal(Code::PermissionDenied, "PASSWORD_WRONG", message)
            }
            Error::User(user::Refusal::RoleNotAllowed) => {
                refusal(Code::PermissionDenied, "NOT_ALLOWED", message)
            }
            Error::User(user::Refusal::CredentialsNotAllowed(id)) => {
                refusal_about(Code::PermissionDenied, "NOT_ALLOWED", message, user(id))
            }
            Error::SignInFailed => refusal(Code::Unauthenticated, "SIGN_IN_FAILED", message),
            Error::RefreshTokenInvalid => {
                refusal(Code::Unauthenticated, "REFRESH_TOKEN_INVALID", message)
            }
            Error::RefreshTokenReused(user_id) => {
                tracing::warn!(%user_id, "a refresh token was used twice; its session is over");
                refusal(Code::Unauthenticated, "REFRESH_TOKEN_INVALID", message)
            }
            Error::ApiKeyInvalid => refusal(Code::Unauthenticated, "API_KEY_INVALID", message),
            Error::ApiKeyNotFound(id) => {
                let about = [("api_key_id", id.to_string())];
                refusal_about(Code::NotFound, "API_KEY_NOT_FOUND", message, about)
            }
            Error::TooManyApiKeys => {
                refusal(Code::FailedPrecondition, "TOO_MANY_API_KEYS", message)
            }
            Error::Password(password::Failure::TooMany) => {
                exhausted("TOO_MANY_PASSWORDS", message, PASSWORD_RETRY_DELAY)
            }
            Error::Password(password::Failure::Broken(_))
            | Error::SigningKey(InvalidKey)
            | Error::NoSigningKey => internal(&message),
            Error::RequestIdReused(RequestIdReused) => {
                refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", message)
            }
            Error::BalanceLimit(BalanceLimit) => {
                refusal(Code::FailedPrecondition, "BALANCE_LIMIT", message)
            }
            Error::Refused(no) => refusal(Code::FailedPrecondition, reason(no), message),
            Error::Storage(error) => sqlite::status(&error),
        }
    }
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::InsufficientCredit => "INSUFFICIENT_CREDIT",
        Refusal::UserNotFound => "USER_NOT_FOUND",
        Refusal::PaymentRefunded => "PAYMENT_REFUNDED",
        Refusal::TooLate => "TOO_LATE",
        Refusal::PaymentDiffers => "PAYMENT_DIFFERS",
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn whoever_finds_the_queue_of_passwords_full_learns_when_to_try_again() {
        let status = Status::from(Error::Password(password::Failure::TooMany));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(service_runtime::reason(&status).as_deref(), Some("TOO_MANY_PASSWORDS"));
        let retry = status.get_details_retry_info().unwrap();
        assert_eq!(retry.retry_delay, Some(PASSWORD_RETRY_DELAY));
    }

    #[test]
    fn that_a_token_was_used_twice_is_told_to_nobody() {
        let told = |error| {
            let status = Status::from(error);
            (status.code(), status.message().to_owned(), service_runtime::reason(&status))
        };
        let reused = Error::RefreshTokenReused(Uuid::nil());
        assert_eq!(told(reused), told(Error::RefreshTokenInvalid));
    }
}
