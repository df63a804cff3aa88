//! Everything that can go wrong, and what callers see of it.

use service_runtime::{RequestIdReused, refusal, refusal_about, sqlite};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    product::{EtagStale, Sku},
    stock::Refusal,
};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such product.
    #[error("there is no product {0}; ListProducts tells which there are")]
    ProductNotFound(Uuid),
    /// Some of the products that were asked for at once do not exist.
    #[error(
        "{} of the products do not exist, {} first; ListProducts tells which there are",
        .0.len(),
        .0.first().copied().unwrap_or_default()
    )]
    ProductsNotFound(Vec<Uuid>),
    /// The SKU belongs to another product.
    #[error("another product has the SKU {}; choose another or update that one", .0.as_str())]
    SkuTaken(Sku),
    /// The product has changed since the caller read it.
    #[error(transparent)]
    EtagStale(#[from] EtagStale),
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
        let about = |code, reason, id: Uuid| {
            refusal_about(code, reason, &message, [("product_id", id.to_string())])
        };
        match error {
            Error::ProductNotFound(id) => about(Code::NotFound, "PRODUCT_NOT_FOUND", id),
            Error::ProductsNotFound(ids) => {
                let ids = [("product_ids", listed(&ids))];
                refusal_about(Code::NotFound, "PRODUCT_NOT_FOUND", message, ids)
            }
            Error::SkuTaken(sku) => {
                let sku = [("sku", sku.as_str().to_owned())];
                refusal_about(Code::AlreadyExists, "SKU_TAKEN", message, sku)
            }
            Error::EtagStale(EtagStale(id)) => about(Code::Aborted, "ETAG_STALE", id),
            Error::RequestIdReused(RequestIdReused) => {
                refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", message)
            }
            Error::Refused(no) => {
                let (code, reason) = (Code::FailedPrecondition, reason(no));
                match no.product_id() {
                    Some(id) => about(code, reason, id),
                    None => refusal(code, reason, message),
                }
            }
            Error::Storage(error) => sqlite::status(&error),
        }
    }
}

fn listed(ids: &[Uuid]) -> String {
    ids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(",")
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
