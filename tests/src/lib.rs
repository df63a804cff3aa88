//! The harness of the tests of the suite as a whole.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

pub mod bad_input;
pub mod hardening;
pub mod member;
pub mod model;
pub mod peer;
pub mod reference;
pub mod shop;
pub mod usage;
pub mod visit;
