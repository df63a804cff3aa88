//! The purchase-service process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    purchase_service::main().await
}
