//! The suite kept running for whoever calls it or works on it, where it was the last
//! time: the same data, ports and certificates. One service at a time can be taken out
//! and run elsewhere, from a program that was just built.

mod greeting;
mod keeper;
mod substitute;

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::{fs::DirBuilderExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use console::style;
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};
use rustix::process::Signal;
use service_runtime::Identifiers;
use tokio::{
    signal::unix::{self, SignalKind, signal},
    time::Instant,
};

use crate::{
    demo::{self, Host, goods},
    service::Service,
    suite::{self, Endpoints, Suite, lock},
    terminal::{Terminal, seconds},
};
use greeting::Greeting;
use keeper::Keeper;

/// The folder of the data, unless another is named.
pub const DATA_DIR: &str = ".chandlery";

const FOLDER_MODE: u32 = 0o700;

/// What is otherwise here than in production. Nobody waits for long at a terminal for
/// callers that do not end.
const VARIABLES: [(&str, &str); 2] =
    [("REFLECTION_ENABLED", "true"), ("DRAIN_DEADLINE_SECONDS", "5")];

/// Is there once the shop has been filled. From then on what is in it is its owner's.
const FILLED_FILE: &str = "filled";

/// Held by whoever keeps the services of a folder running.
const LOCK_FILE: &str = "dev.lock";

/// How long a lock may be held by somebody who only looks whether it is.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How often to look whether a service is wanted elsewhere, or given back.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Keeps the suite running: the same data, ports and certificates at every start
///
/// Starts the three services on loopback, over mutual TLS and with reflection; fills
/// a new shop; and restarts what ends. Once all serve, DIR/endpoints.json says
/// where, DIR/certs holds the certificates, and ready-made calls are printed. Ctrl-C
/// drains and ends it all; a second one kills.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where databases, certificates and logs are kept; made if it is missing
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,

    /// Runs this service alone, by this program, in place of the one that a `chandlery
    /// dev` on the same folder keeps running; it is given back at the end
    #[arg(long, value_name = "SERVICE")]
    pub only: Option<Service>,
}

/// Why the suite is not kept running.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file of the folder cannot be read or written.
    #[error("{} cannot be used: {cause}; choose another folder with --data-dir", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// There are no signals or no randomness.
    #[error("the operating system refuses what every process needs: {0}")]
    System(String),
    /// Another process keeps the services of the folder running.
    #[error(
        "another `chandlery dev` runs on {}; end that one first, or choose another folder with \
         --data-dir",
        .0.display()
    )]
    Running(PathBuf),
    /// There are no other services to run one with.
    #[error(
        "no `chandlery dev` runs on {}; start one in another terminal, and then this again",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// The other services do not serve yet.
    #[error("the services on {} are still starting; try again once they serve", .0.display())]
    Starting(PathBuf),
    /// The service was taken out already.
    #[error("another `chandlery dev --only {0}` runs on the same folder; end that one first")]
    Taken(Service),
    /// The other services have ended.
    #[error("the `chandlery dev` on {} has ended, and the other services with it", .0.display())]
    Abandoned(PathBuf),
    /// A process did not do as it was told.
    #[error(transparent)]
    Suite(#[from] suite::Error),
    /// The shop cannot be filled.
    #[error(transparent)]
    Goods(#[from] demo::Failure),
    /// The person at the terminal, or a supervisor, does not want to wait for the drain.
    #[error("killed; nothing is left running")]
    Killed(SignalKind),
}

/// Keeps the suite running, or one service of it, until the process is told to end.
/// `invoked_as` is how a person called this program.
pub async fn run(args: &Args, host: Host, invoked_as: &str) -> Result<(), Failure> {
    let Args { data_dir, only } = args;
    let mut interrupts = Interrupts::listen()?;
    let mut random = StdRng::try_from_rng(&mut SysRng).map_err(system)?;
    let mut fork = || StdRng::from_rng(&mut random);
    let (identifiers, jitter) = (Identifiers::new(host.clock.clone(), fork()), fork());
    let Host { program, mut environment, clock } = host;
    for (name, value) in VARIABLES {
        environment.push((name.to_owned(), value.to_owned()));
    }
    let directory = data_dir.clone();
    let options = suite::Options { program, directory, environment, clock, random };
    let terminal = Terminal::new();
    if let Some(service) = *only {
        return substitute::run(service, options, &mut interrupts, &terminal).await;
    }
    let greeting = Greeting { data_dir, invoked_as, request_id: identifiers.next() };
    keep_all(options, &greeting, jitter, &mut interrupts, &terminal).await
}

async fn keep_all(
    options: suite::Options,
    greeting: &Greeting<'_>,
    jitter: StdRng,
    interrupts: &mut Interrupts,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let folder = &options.directory.clone();
    make(folder).map_err(failed(folder))?;
    let lock_file = folder.join(LOCK_FILE);
    let lock = lock::acquire(&lock_file, LOCK_PATIENCE).await.map_err(failed(&lock_file))?;
    let Some(_lock) = lock else { return Err(Failure::Running(folder.clone())) };

    Endpoints::withdraw(folder).map_err(failed(folder))?;
    let mut suite = Suite::prepare(options)?;
    let kept = async { open(&mut suite, folder, greeting, jitter, terminal).await?.run().await };
    let outcome = tokio::select! {
        outcome = kept => outcome.map(|never| match never {}),
        _ = interrupts.next() => Ok(()),
    };
    Endpoints::withdraw(folder).map_err(failed(folder))?;
    end(outcome, suite, interrupts, terminal).await
}

/// Makes the folder if it is missing. It will hold keys and passwords: it is for the one
/// who makes it, and for no repository.
fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    match File::create_new(folder.join(".gitignore")) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        file => file?.write_all(b"*\n"),
    }
}

/// Starts the services, fills the shop if it never was filled to the end, and tells where
/// all that is.
async fn open<'a>(
    suite: &'a mut Suite,
    folder: &'a Path,
    greeting: &Greeting<'_>,
    mut jitter: StdRng,
    terminal: &'a Terminal,
) -> Result<Keeper<'a>, Failure> {
    let begin = Instant::now();
    terminal.line(format_args!("{} on {}", style("Chandlery").bold(), folder.display()));
    // Whoever was called there before is found there again.
    let last = Endpoints::read_last(folder).ok();
    if let Some(last) = &last {
        suite.place(last);
    }
    suite.launch().await?;
    let clients = suite.clients()?;
    let filled = folder.join(FILLED_FILE);
    if !filled.exists() {
        goods::import(&clients, &mut jitter, terminal).await?;
        fs::write(&filled, "").map_err(failed(&filled))?;
    }
    let endpoints = suite.endpoints();
    endpoints.publish(folder).map_err(failed(folder))?;
    for service in Service::ALL {
        let process_id = suite.process_id(service).unwrap_or_default();
        let address = endpoints.of(service).grpc;
        terminal.line(format_args!("  {service:16}  {address}  process {process_id}"));
    }
    if let Some(last) = &last {
        tell_moves(last, &endpoints, terminal);
    }
    terminal.line(format_args!("  serving over mutual TLS after {}", seconds(begin.elapsed())));
    terminal.line(greeting.at(&endpoints));
    Ok(Keeper::new(suite, folder, terminal))
}

/// Tells whoever has noted the address of a service that it is another one now.
fn tell_moves(last: &Endpoints, endpoints: &Endpoints, terminal: &Terminal) {
    for service in Service::ALL {
        let (last, now) = (last.of(service), endpoints.of(service));
        for (from, to) in [(last.grpc, now.grpc), (last.health, now.health)] {
            if from != to {
                terminal.line(format_args!("  {service} has moved to {to}, since {from} is taken"));
            }
        }
    }
}

/// Drains the services that run here, callers before those they call, unless a second
/// signal comes. Keeps silent about it after a failure, which is what there is to say.
async fn end(
    outcome: Result<(), Failure>,
    mut suite: Suite,
    interrupts: &mut Interrupts,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let drained = tokio::select! {
        drained = drain(&mut suite) => drained.map_err(Failure::from),
        kind = interrupts.next() => Err(Failure::Killed(kind)),
    };
    outcome?;
    if drained? {
        terminal.line(format_args!("Drained and ended in {}", seconds(begin.elapsed())));
    }
    Ok(())
}

/// Whether there was a service to drain. Those that had not begun to serve are none.
async fn drain(suite: &mut Suite) -> Result<bool, suite::Error> {
    let mut outcome = Ok(false);
    for service in Service::ALL.into_iter().rev() {
        if suite.process_id(service).is_none() {
            continue;
        }
        let ended = match suite.terminate(service).await {
            Ok(status) if is_clean(status) => Ok(status.success()),
            Ok(status) => {
                Err(suite::Error::Unclean { service, status, log: suite.log_tail(service) })
            }
            Err(error) => Err(error),
        };
        outcome = outcome.and_then(|before| Ok(ended? || before));
    }
    outcome
}

/// Whether a service has drained, or had not even begun to serve.
fn is_clean(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(Signal::TERM.as_raw())
}

/// The lock that is held by whoever runs a service, or is about to, in place of the one
/// that is kept running.
fn wanted_file(folder: &Path, service: Service) -> PathBuf {
    folder.join(format!("{service}.wanted"))
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes it so")]
fn system(error: impl ToString) -> Failure {
    Failure::System(error.to_string())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |cause| Failure::File { path: path.to_owned(), cause }
}

/// What tells the process to end.
struct Interrupts {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Interrupts {
    fn listen() -> Result<Self, Failure> {
        let interrupt = signal(SignalKind::interrupt()).map_err(system)?;
        let terminate = signal(SignalKind::terminate()).map_err(system)?;
        Ok(Self { interrupt, terminate })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }
}
