//! The command line as tests start it: cargo builds no sibling package's binary for
//! a test.

fn main() -> std::process::ExitCode {
    chandlery::main()
}
