//! Everything that can go wrong, and what callers see of it.

use service_runtime::{NotOwner, RequestIdReused, refusal, refusal_about, sqlite};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{cart::Refusal, purchase::State};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such purchase, or not for this caller.
    #[error("there is no purchase {0}; ListPurchases names those of a user")]
    PurchaseNotFound(Uuid),
    /// The user is another's to act for.
    #[error(transparent)]
    NotOwner(#[from] NotOwner),
    /// The request identifier belongs to another request.
    #[error(transparent)]
    RequestIdReused(#[from] RequestIdReused),
    /// It is too late to cancel.
    #[error("purchase {0} is {state} and cannot be cancelled; only a PENDING one can", state = .1.name())]
    NotCancellable(Uuid, State),
    /// There is nothing to refund.
    #[error("purchase {0} is {state} and cannot be refunded; only a CONFIRMED one can", state = .1.name())]
    NotRefundable(Uuid, State),
    /// The purchase has changed since the caller read it.
    #[error("purchase {0} has changed since; read it again and decide anew")]
    EtagStale(Uuid),
    /// The cart cannot be shopped with so.
    #[error(transparent)]
    CartRefused(#[from] Refusal),
    /// Nobody can tell whether a cart still is what its buyer saw.
    #[error("the catalog is away, so that prices cannot be compared; open the cart again")]
    CatalogAway,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] sqlx::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let about = |code, reason, id: Uuid| {
            refusal_about(code, reason, &message, [("purchase_id", id.to_string())])
        };
        match error {
            Error::PurchaseNotFound(id) => about(Code::NotFound, "PURCHASE_NOT_FOUND", id),
            Error::NotOwner(NotOwner(id)) => {
                let user = [("user_id", id.to_string())];
                refusal_about(Code::PermissionDenied, "NOT_OWNER", message, user)
            }
            Error::RequestIdReused(RequestIdReused) => {
                refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", message)
            }
            Error::NotCancellable(id, _) => {
                about(Code::FailedPrecondition, "PURCHASE_NOT_CANCELLABLE", id)
            }
            Error::NotRefundable(id, _) => {
                about(Code::FailedPrecondition, "PURCHASE_NOT_REFUNDABLE", id)
            }
            Error::EtagStale(id) => about(Code::Aborted, "ETAG_STALE", id),
            Error::CartRefused(no) => {
                let (code, reason, id) = named(no);
                refusal_about(code, reason, message, [("cart_id", id.to_string())])
            }
            Error::CatalogAway => Status::unavailable(message),
            Error::Storage(error) => sqlite::status(&error),
        }
    }
}

fn named(refusal: Refusal) -> (Code, &'static str, Uuid) {
    match refusal {
        Refusal::NotOwner(id) => (Code::PermissionDenied, "NOT_OWNER", id),
        Refusal::Differs(id) => (Code::FailedPrecondition, "CART_DIFFERS", id),
        Refusal::Empty(id) => (Code::FailedPrecondition, "CART_EMPTY", id),
        Refusal::Full(id) => (Code::FailedPrecondition, "CART_FULL", id),
        Refusal::Stale(id) => (Code::Aborted, "ETAG_STALE", id),
    }
}
