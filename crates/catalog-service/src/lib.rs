//! The catalog-service.
