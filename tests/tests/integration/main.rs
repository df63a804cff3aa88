//! What callers of a running suite rely on: real processes, real TLS, real files.

mod configuration;
mod deadlines;
mod idempotency;
mod identity;
mod input;
mod purchases;
mod streams;
mod telemetry;

use suite_tests::shop::Shop;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chandlery-suite");

async fn shop() -> Shop {
    Shop::open(PROGRAM).await
}
