//! The catalog-service process.

use std::process::ExitCode;

fn main() -> ExitCode {
    service_runtime::block_on(catalog_service::main())
}
