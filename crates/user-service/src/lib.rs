//! The user-service.
