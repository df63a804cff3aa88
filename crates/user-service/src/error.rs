//! Everything that can go wrong, and what callers see of it.

use service_runtime::{RequestIdReused, refusal, sqlite};
use tonic::{Code, Status};

use crate::{ledger::BalanceLimit, payment::Refusal};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such user.
    #[error("there is no such user")]
    UserNotFound,
    /// The address belongs to another user.
    #[error("the address belongs to another user; choose another")]
    EmailTaken,
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
        match error {
            Error::UserNotFound => refusal(Code::NotFound, "USER_NOT_FOUND", message),
            Error::EmailTaken => refusal(Code::AlreadyExists, "EMAIL_TAKEN", message),
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
