//! The demonstration: three services, many purchases, and a `kill -9` again and
//! again, which no purchase must notice.

mod goods;
mod kill;
mod people;
mod trade;
mod watch;

use std::{io, path::PathBuf, time::Duration};

use clap::value_parser;
use console::style;
use indicatif::HumanCount;
use rand::{
    RngExt, SeedableRng,
    rngs::{StdRng, SysError, SysRng},
};
use service_runtime::Clock;
use tempfile::TempDir;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tonic::Status;

use crate::{
    check::{self, Evidence, check},
    service::Service,
    suite::{self, Suite},
    terminal::{Terminal, seconds},
};
use people::People;
use trade::{Trade, Traded};

const PURCHASES: u32 = 400;
const KILLS: u32 = 8;
const CONCURRENCY: u32 = 32;

/// How long the last purchases may take to settle, and then some.
const QUIET_PATIENCE: Duration = Duration::from_mins(1);

/// Shows purchases surviving a killed service, from nothing to a checked end
///
/// Starts the three services on loopback, over mutual TLS and with a database file
/// each; fills the shelves; and buys while purchase-service is killed with SIGKILL
/// and restarted at random moments. Then checks that every purchase happened
/// exactly once or not at all. Needs nothing, and leaves nothing behind.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How many purchases to make
    #[arg(long, default_value_t = PURCHASES, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub purchases: u32,

    /// How often to kill purchase-service
    #[arg(long, default_value_t = KILLS, value_parser = value_parser!(u32).range(1..=1_000))]
    pub kills: u32,

    /// How many purchases are under way at once
    #[arg(long, default_value_t = CONCURRENCY, value_parser = value_parser!(u32).range(1..=1_000))]
    pub concurrency: u32,

    /// Makes the choice of goods and moments that an earlier run made [default:
    /// random]
    #[arg(long)]
    pub seed: Option<u64>,
}

impl Default for Args {
    fn default() -> Self {
        Self { purchases: PURCHASES, kills: KILLS, concurrency: CONCURRENCY, seed: None }
    }
}

/// What the demonstration is given by the process that it is in.
#[derive(Clone, Debug)]
pub struct Host {
    /// The binary that offers the services as hidden subcommands.
    pub program: PathBuf,
    /// The variables that the services shall have.
    pub environment: Vec<(String, String)>,
    /// Where the time comes from.
    pub clock: Clock,
}

/// Why the demonstration did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is nowhere to work.
    #[error("no temporary folder can be made: {0}; set TMPDIR to one that can be written")]
    Folder(io::Error),
    /// There are no signals or no randomness.
    #[error("the operating system refuses what every process needs: {0}")]
    System(String),
    /// A process did not do as it was told.
    #[error(transparent)]
    Suite(#[from] suite::Error),
    /// The list of products cannot be used.
    #[error("crates/chandlery/data/products.csv cannot be imported: {0}")]
    Products(String),
    /// A call that prepares the story failed.
    #[error("{0} failed: {1}")]
    Call(&'static str, Status),
    /// The books cannot be read.
    #[error(transparent)]
    Check(#[from] check::Error),
    /// Purchases were not answered.
    #[error("{count} purchases were not answered, the first of them {request_id}: {status}")]
    Unanswered {
        /// How many.
        count: usize,
        /// The request of one of them.
        request_id: String,
        /// Why it was not.
        status: Status,
    },
    /// Purchases have not settled.
    #[error("{count} purchases are still under way after {QUIET_PATIENCE:?}")]
    NotQuiet {
        /// How many.
        count: usize,
    },
    /// An invariant is broken.
    #[error("{0} of the invariants are broken")]
    Broken(usize),
    /// The demonstration has shown nothing.
    #[error("no kill hit a purchase in flight; ask for more with --purchases or --kills")]
    NothingKilled,
    /// The person at the terminal, or a supervisor, has had enough.
    #[error("interrupted; nothing is left running")]
    Interrupted(SignalKind),
}

/// Tells the story in a temporary folder, which is removed unless something went
/// wrong that its logs may explain.
pub async fn run(args: &Args, host: Host) -> Result<(), Failure> {
    let folder =
        tempfile::Builder::new().prefix("chandlery-").tempdir().map_err(Failure::Folder)?;
    let outcome = tokio::select! {
        outcome = tell(args, host, &folder) => outcome,
        interrupted = interrupted() => Err(interrupted),
    };
    // The story has let go of its processes, and with them of the folder.
    match &outcome {
        Ok(()) | Err(Failure::Interrupted(_)) => folder.close().map_err(Failure::Folder)?,
        Err(failure) => {
            if !matches!(failure, Failure::Suite(_)) {
                for service in Service::ALL {
                    eprintln!("The end of {service}.log:");
                    eprint!("{}", suite::log_tail(folder.path(), service));
                }
            }
            eprintln!("Databases, certificates and logs are kept in {}", folder.keep().display());
        }
    }
    outcome
}

async fn tell(args: &Args, host: Host, folder: &TempDir) -> Result<(), Failure> {
    let system = |error: SysError| Failure::System(error.to_string());
    let ports = StdRng::try_from_rng(&mut SysRng).map_err(system)?;
    let seed = match args.seed {
        Some(seed) => seed,
        // Short enough to be typed again.
        None => StdRng::try_from_rng(&mut SysRng).map_err(system)?.random::<u32>().into(),
    };
    let mut random = StdRng::seed_from_u64(seed);
    let terminal = Terminal::new();
    terminal.line(format_args!(
        "{}: {} purchases through three services while one is killed {} times (seed {seed})",
        style("Chandlery").bold(),
        HumanCount(args.purchases.into()),
        args.kills
    ));

    terminal.step("Three services, each a process with its own database and certificate");
    let options = suite::Options {
        program: host.program,
        directory: folder.path().to_owned(),
        environment: host.environment,
        clock: host.clock,
        random: ports,
    };
    let mut suite = start(options, &terminal).await?;
    let clients = suite.clients()?;

    terminal.step("Goods on the shelves");
    let products = goods::import(&clients, &terminal).await?;

    terminal.step("People with store credit");
    let currencies = goods::currencies(&products);
    let people =
        People::register(&clients, &currencies, args.purchases, &mut random, &terminal).await?;

    terminal.step("Purchases, while purchase-service is killed and restarted");
    let trade = Trade::plan(args, &people, &products, &mut random)?;
    let Traded { outcome, kills } = Box::pin(trade.run(&clients, &mut suite, &terminal)).await?;

    terminal.step("What must hold, once nothing is under way");
    let evidence = Evidence::collect_when_quiet(&clients, QUIET_PATIENCE).await?;
    let evidence = evidence.with_sent(outcome.sent.clone());
    let report = check(&evidence);
    terminal.line(report.to_string().trim_end());

    let begin = Instant::now();
    suite.stop().await?;
    terminal.line(format_args!("  All services drained and ended in {}", seconds(begin.elapsed())));

    if let Some((request_id, status)) = outcome.unanswered.first() {
        let (count, request_id) = (outcome.unanswered.len(), request_id.clone());
        return Err(Failure::Unanswered { count, request_id, status: status.clone() });
    }
    match (report.broken().count(), evidence.unsettled().count()) {
        (0, 0) if kills.hits > 0 => {}
        (0, 0) => return Err(Failure::NothingKilled),
        (0, count) => return Err(Failure::NotQuiet { count }),
        (count, _) => return Err(Failure::Broken(count)),
    }
    terminal.line("");
    terminal.line(format_args!(
        "{} {} purchases, {:.0} a second, and every one exactly once or not at all: \
         {} kills with {} calls in flight, {} repeats",
        style("✓").green().bold(),
        HumanCount(evidence.purchases.purchases.len() as u64),
        outcome.rate(),
        kills.count,
        kills.calls,
        HumanCount(outcome.repeats)
    ));
    Ok(())
}

async fn start(options: suite::Options, terminal: &Terminal) -> Result<Suite, Failure> {
    let begin = Instant::now();
    let suite = Suite::start(options).await?;
    for service in Service::ALL {
        let process_id = suite.process_id(service).unwrap_or_default();
        let address = suite.address(service);
        terminal.line(format_args!("  {service:16}  {address}  process {process_id}"));
    }
    terminal.line(format_args!("  serving over mutual TLS after {}", seconds(begin.elapsed())));
    Ok(suite)
}

/// Resolves when the process is told to end.
async fn interrupted() -> Failure {
    let wait = async |kind| match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
            Failure::Interrupted(kind)
        }
        Err(error) => Failure::System(error.to_string()),
    };
    tokio::select! {
        failure = wait(SignalKind::interrupt()) => failure,
        failure = wait(SignalKind::terminate()) => failure,
        failure = wait(SignalKind::hangup()) => failure,
    }
}
