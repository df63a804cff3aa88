//! Everything that can go wrong, and what callers see of it.

use service_runtime::{RequestIdReused, refusal, sqlite};
use tonic::{Code, Status};

use crate::stock::Refusal;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such product.
    #[error("there is no such product")]
    ProductNotFound,
    /// The SKU belongs to another product.
    #[error("the SKU belongs to another product; choose another or update that one")]
    SkuTaken,
    /// The request identifier belongs to another request.
    #[error(transparent)]
    RequestIdReused(#[from] RequestIdReused),
    /// The stock says no to a purchase.
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
            Error::ProductNotFound => refusal(Code::NotFound, "PRODUCT_NOT_FOUND", message),
            Error::SkuTaken => refusal(Code::AlreadyExists, "SKU_TAKEN", message),
            Error::RequestIdReused(RequestIdReused) => {
                refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", message)
            }
            Error::Refused(no) => refusal(Code::FailedPrecondition, reason(no), message),
            Error::Storage(error) => sqlite::status(&error),
        }
    }
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::OutOfStock(_) => "OUT_OF_STOCK",
        Refusal::ProductNotFound(_) => "PRODUCT_NOT_FOUND",
        Refusal::CurrencyMismatch(_) => "CURRENCY_MISMATCH",
        Refusal::ReservationReleased => "RESERVATION_RELEASED",
        Refusal::TooLate => "TOO_LATE",
        Refusal::ReservationDiffers => "RESERVATION_DIFFERS",
        Refusal::ReservationNotFound => "RESERVATION_NOT_FOUND",
        Refusal::ReservationExpired => "RESERVATION_EXPIRED",
        Refusal::StockLimit => "STOCK_LIMIT",
    }
}
