//! The demonstration: three services, many purchases, and a `kill -9` again and
//! again, which no purchase must notice.

pub(crate) mod goods;
mod kill;
mod people;
mod supervisor;
mod trade;
mod watch;

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use clap::value_parser;
use console::style;
use rand::{
    RngExt, SeedableRng,
    rngs::{StdRng, SysError, SysRng},
};
use service_runtime::Clock;
use tempfile::TempDir;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout},
};
use tonic::{Response, Status};

use crate::{
    check::{self, Evidence, check},
    load::repeat,
    service::Service,
    suite,
    terminal::{Terminal, counted, seconds},
};
use people::{FOLLOWED, People};
use supervisor::{LOSS_LIMIT, LOSS_WINDOW, Supervisor};
use trade::{Trade, Traded};

const PURCHASES: u32 = 400;
const KILLS: u32 = 8;
const CONCURRENCY: u32 = 32;

/// How long any call of the story is repeated. A service that somebody stops or kills
/// is back by then, or away for good.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long one attempt may take, a stream included.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(30);

/// How long the last purchases may take to settle, and then some.
const QUIET_PATIENCE: Duration = Duration::from_mins(1);

/// Shows purchases surviving a killed service, from nothing to a checked end
///
/// Starts the three services on loopback, over mutual TLS and with a database file
/// each; fills the shelves; and buys while purchase-service is killed with SIGKILL
/// and restarted at random moments. Then checks that every purchase happened
/// exactly once or not at all. Needs nothing, and leaves nothing behind. Kill any of
/// the processes yourself meanwhile: what you end is started again.
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

/// What the demonstration and `chandlery dev` are given by the process that they are in.
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
    /// A service ends again and again.
    #[error(
        "{service} has ended {LOSS_LIMIT} times within {LOSS_WINDOW:?}, the last time with \
         {status}; its log ends so:\n{log}"
    )]
    KeepsEnding {
        /// The service.
        service: Service,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// Services run and do not serve, which explains the failure.
    #[error("no answer from {}, though running; {failure}", names(.services))]
    Away {
        /// The services.
        services: Vec<Service>,
        /// What their absence led to.
        failure: Box<Failure>,
    },
    /// The list of products cannot be used.
    #[error("crates/chandlery/data/products.csv cannot be imported: {0}")]
    Products(String),
    /// A call of the story failed.
    #[error("{0} failed with {code:?}: {message}", code = .1.code(), message = .1.message())]
    Call(&'static str, Status),
    /// The books cannot be read.
    #[error(transparent)]
    Check(#[from] check::Error),
    /// Purchases were not answered.
    #[error(
        "{} not answered, the first of them of request {request_id}: {:?}, {}",
        counted(*.count, "purchase"), .status.code(), .status.message()
    )]
    Unanswered {
        /// How many.
        count: usize,
        /// The request of one of them.
        request_id: String,
        /// Why it was not.
        status: Status,
    },
    /// Purchases have not settled.
    #[error("{} still under way after {QUIET_PATIENCE:?}", counted(*.count, "purchase"))]
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
            if !matches!(failure, Failure::Suite(_) | Failure::KeepsEnding { .. }) {
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
    let random = StdRng::seed_from_u64(seed);
    let terminal = Terminal::new();
    terminal.line(format_args!(
        "{}: {} through three services while one is killed {} (seed {seed})",
        style("Chandlery").bold(),
        counted(args.purchases, "purchase"),
        counted(args.kills, "time")
    ));

    terminal.step("Three services, each a process with its own database and certificate");
    let options = suite::Options {
        program: host.program,
        directory: folder.path().to_owned(),
        environment: host.environment,
        clock: host.clock,
        random: ports,
    };
    let supervisor = start(options, &terminal).await?;
    let told = tokio::select! {
        told = Box::pin(trade(args, &supervisor, random, &terminal)) => told,
        lost = supervisor.run() => lost.map(|never| match never {}),
    };
    let Err(failure) = told else { return Ok(()) };
    let away = match &failure {
        Failure::Call(..)
        | Failure::Unanswered { .. }
        | Failure::Check(_)
        | Failure::NotQuiet { .. } => supervisor.away().await,
        _ => Vec::new(),
    };
    if away.is_empty() {
        return Err(failure);
    }
    Err(Failure::Away { services: away, failure: Box::new(failure) })
}

/// Everything that happens while the services run, to their end.
async fn trade(
    args: &Args,
    supervisor: &Supervisor<'_>,
    mut random: StdRng,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let clients = supervisor.attend().await?.suite.clients()?;

    terminal.step("Goods on the shelves");
    let products = goods::import(&clients, &mut random, terminal).await?;

    terminal.step("People with store credit");
    let currencies = goods::currencies(&products);
    let people =
        People::register(&clients, &currencies, args.purchases, &mut random, terminal).await?;

    terminal.step("Purchases, while purchase-service is killed and restarted");
    let trade = Trade::plan(args, &people, &products, &mut random)?;
    let Traded { outcome, kills } = Box::pin(trade.run(&clients, supervisor, terminal)).await?;

    terminal.step("What must hold, once nothing is under way");
    let evidence = Evidence::collect_despite_absences(&clients, QUIET_PATIENCE, PATIENCE).await?;
    let evidence = evidence.with_sent(outcome.sent.clone());
    let report = check(&evidence);
    terminal.line(report.to_string().trim_end());
    match (report.broken().count(), evidence.unsettled().count()) {
        (0, 0) if kills.hits > 0 => {}
        (0, 0) => return Err(Failure::NothingKilled),
        (0, count) => return Err(Failure::NotQuiet { count }),
        (count, _) => return Err(Failure::Broken(count)),
    }

    let begin = Instant::now();
    let losses = supervisor.stop().await?;
    terminal.line(format_args!("  All services drained and ended in {}", seconds(begin.elapsed())));
    let by_others = match losses {
        0 => String::new(),
        count => format!(" and {count} by somebody else"),
    };
    terminal.line("");
    terminal.line(format_args!(
        "{} {} and {FOLLOWED}'s, {:.0} a second, and every one exactly once or not at all: \
         {} with {} in flight{by_others}, {}",
        style("✓").green().bold(),
        counted(outcome.answered(), "purchase"),
        outcome.rate(),
        counted(kills.count, "kill"),
        counted(kills.calls, "call"),
        counted(outcome.repeats, "repeat")
    ));
    Ok(())
}

async fn start(options: suite::Options, terminal: &Terminal) -> Result<Supervisor<'_>, Failure> {
    let begin = Instant::now();
    let supervisor = Supervisor::start(options, terminal).await?;
    let supervised = supervisor.attend().await?;
    for service in Service::ALL {
        let process_id = supervised.suite.process_id(service).unwrap_or_default();
        let address = supervised.suite.address(service);
        terminal.line(format_args!("  {service:16}  {address}  process {process_id}"));
    }
    terminal.line(format_args!("  serving over mutual TLS after {}", seconds(begin.elapsed())));
    drop(supervised);
    Ok(supervisor)
}

/// Makes a call of the story, again and again while its service is away.
async fn call<T, F>(
    name: &'static str,
    random: &mut StdRng,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let attempt = || {
        let answer = timeout(ATTEMPT_PATIENCE, attempt());
        let late = |_| Status::deadline_exceeded(format!("no answer within {ATTEMPT_PATIENCE:?}"));
        async move { answer.await.map_err(late).flatten() }
    };
    let answer = repeat(PATIENCE, StdRng::from_rng(random), || {}, attempt).await;
    answer.map_err(|status| Failure::Call(name, status))
}

fn names(services: &[Service]) -> String {
    services.iter().map(|service| service.name()).collect::<Vec<_>>().join(" and ")
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
        failure = wait(SignalKind::quit()) => failure,
    }
}
