//! What callers of a running suite rely on: real processes, real TLS, real files.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod auth;
mod bad_input;
mod carts;
mod catalog;
mod compression;
mod configuration;
mod deadlines;
mod entries;
mod health;
mod idempotency;
mod identity;
mod input;
mod purchases;
mod streams;
mod telemetry;
mod users;

use suite_tests::shop::Shop;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chandlery-suite");

async fn shop() -> Shop {
    Shop::open(PROGRAM).await
}
