//! The purchase-service process.

use std::process::ExitCode;

fn main() -> ExitCode {
    service_runtime::block_on(purchase_service::main())
}
