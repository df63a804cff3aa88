//! Sends more bad input to the suite than the tests do, and tells how each RPC answered
//! it: `cargo run -p suite-tests --example bad_input`.

use std::{env, io, process::ExitCode};

use chandlery::service::Service;
use clap::Parser;
use suite_tests::{
    bad_input,
    shop::{Shop, printed_seed},
};

/// Sends bad input to a suite of its own
#[derive(Parser)]
struct Arguments {
    /// How many inputs to send
    #[arg(long, default_value_t = 10_000)]
    count: usize,

    /// What to choose them by; a new seed unless given
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> io::Result<ExitCode> {
    // This program is that of the services, too.
    let subcommand = env::args().nth(1).unwrap_or_default();
    if Service::ALL.iter().any(|service| service.name() == subcommand) {
        return Ok(chandlery::main());
    }
    send(&env::current_exe()?.to_string_lossy(), Arguments::parse())
}

#[tokio::main]
async fn send(program: &str, Arguments { count, seed }: Arguments) -> io::Result<ExitCode> {
    let shop = Shop::open(program).await;
    let report = bad_input::send(&shop, seed.unwrap_or_else(printed_seed), count).await;
    println!("{report}");
    shop.close().await;
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
