//! The user-service process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    user_service::main().await
}
