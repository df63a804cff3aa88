//! The purchase-service.
