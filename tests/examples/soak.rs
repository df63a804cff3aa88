//! Disturbs a suite for an hour, in every way at once, and tells what it took: `just soak`.

use std::{env, io, process::ExitCode, time::Duration};

use chandlery::service::Service;
use clap::Parser;
use suite_tests::{
    hardening::{Bench, Scale, soak::soak},
    shop::printed_seed,
};

/// Disturbs a suite of its own
#[derive(Parser)]
struct Arguments {
    /// How long
    #[arg(long, default_value_t = 60)]
    minutes: u64,

    /// Where whatever is random comes from; a new seed unless given
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> io::Result<ExitCode> {
    // This program is that of the services, too.
    let subcommand = env::args().nth(1).unwrap_or_default();
    if Service::ALL.iter().any(|service| service.name() == subcommand) {
        return Ok(chandlery::main());
    }
    disturb(&env::current_exe()?.to_string_lossy(), Arguments::parse())
}

#[tokio::main]
async fn disturb(program: &str, Arguments { minutes, seed }: Arguments) -> io::Result<ExitCode> {
    let bench = Bench {
        program: program.to_owned(),
        scale: Scale::Full,
        seed: seed.unwrap_or_else(printed_seed),
    };
    let report = soak(bench, Duration::from_mins(minutes)).await;
    println!("{report}");
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
