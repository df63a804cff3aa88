//! Everything that can go wrong, and what callers see of it.

use service_runtime::{RequestIdReused, refusal, sqlite};
use tonic::{Code, Status};

use crate::purchase::State;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such purchase.
    #[error("there is no such purchase")]
    PurchaseNotFound,
    /// The request identifier belongs to another request.
    #[error(transparent)]
    RequestIdReused(#[from] RequestIdReused),
    /// It is too late to cancel.
    #[error("a purchase that is {} cannot be cancelled; only a PENDING one can", .0.name())]
    NotCancellable(State),
    /// There is nothing to refund.
    #[error("a purchase that is {} cannot be refunded; only a CONFIRMED one can", .0.name())]
    NotRefundable(State),
    /// The purchase has changed since the caller read it.
    #[error("the purchase has changed since; read it again and decide anew")]
    EtagStale,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] sqlx::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::PurchaseNotFound => refusal(Code::NotFound, "PURCHASE_NOT_FOUND", message),
            Error::RequestIdReused(RequestIdReused) => {
                refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", message)
            }
            Error::NotCancellable(_) => {
                refusal(Code::FailedPrecondition, "PURCHASE_NOT_CANCELLABLE", message)
            }
            Error::NotRefundable(_) => {
                refusal(Code::FailedPrecondition, "PURCHASE_NOT_REFUNDABLE", message)
            }
            Error::EtagStale => refusal(Code::Aborted, "ETAG_STALE", message),
            Error::Storage(error) => sqlite::status(&error),
        }
    }
}
