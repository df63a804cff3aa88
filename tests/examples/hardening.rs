//! Runs every case of the hardening table in full and prints the table: `just hardening`.

use std::{env, io, process::ExitCode};

use chandlery::service::Service;
use clap::Parser;
use suite_tests::{
    hardening::{Bench, Scale, cases, table},
    shop::printed_seed,
};

/// Runs the cases of the hardening table against suites of its own
#[derive(Parser)]
struct Arguments {
    /// Runs the cases in the short form of the tests
    #[arg(long)]
    short: bool,

    /// Runs only cases whose name contains this
    #[arg(long, value_name = "PART", default_value = "")]
    only: String,

    /// Where whatever is random comes from; a new seed unless given
    #[arg(long)]
    seed: Option<u64>,
}

/// The narrowest table that reads well.
const WIDTH_MINIMUM: u16 = 80;
/// The widest one.
const WIDTH_LIMIT: u16 = 160;

fn main() -> io::Result<ExitCode> {
    // This program is that of the services, too, and that of a caller.
    let subcommand = env::args().nth(1).unwrap_or_default();
    if subcommand == "call" || Service::ALL.iter().any(|service| service.name() == subcommand) {
        return Ok(chandlery::main());
    }
    run(&env::current_exe()?.to_string_lossy(), Arguments::parse())
}

#[tokio::main]
async fn run(program: &str, Arguments { short, only, seed }: Arguments) -> io::Result<ExitCode> {
    let bench = Bench {
        program: program.to_owned(),
        scale: if short { Scale::Short } else { Scale::Full },
        seed: seed.unwrap_or_else(printed_seed),
    };
    let mut rows = Vec::new();
    for case in cases().into_iter().filter(|case| case.name.contains(&only)) {
        eprintln!("{} ...", case.name);
        let row = case.row(bench.clone()).await;
        eprintln!("    {}", row.found);
        rows.push(row);
    }
    let (_, width) = console::Term::stdout().size();
    print!("{}", table(&rows, width.clamp(WIDTH_MINIMUM, WIDTH_LIMIT).into()));
    let all_hold = rows.iter().all(|row| row.holds);
    Ok(if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
