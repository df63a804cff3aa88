//! The catalog-service process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    catalog_service::main().await
}
