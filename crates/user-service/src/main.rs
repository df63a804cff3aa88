//! The user-service process.

use std::process::ExitCode;

fn main() -> ExitCode {
    service_runtime::block_on(user_service::main())
}
