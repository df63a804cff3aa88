//! The chandlery command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    chandlery::main()
}
