//! The life of a service process, in order: configuration, telemetry, identity,
//! listeners, serving, drain.

use std::{env, future::Future, process::ExitCode};

use rand::{SeedableRng, rngs::StdRng, rngs::SysRng};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    Clock, Config, Identifiers, Server, StartError, Variables,
    config::{Invalid, Reported},
    telemetry,
};

/// Why a process ends with a failure.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Configuration(#[from] Invalid),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    Telemetry(#[from] telemetry::Error),
    #[error("the signal handlers could not be set: {0}")]
    Signals(std::io::Error),
    #[error("the operating system gives no randomness: {0}")]
    Randomness(rand::rngs::SysError),
}

impl Failure {
    /// The codes of BSD's sysexits, so that a supervisor can tell what to mend.
    fn exit_code(&self) -> ExitCode {
        const UNAVAILABLE: u8 = 69;
        const OS: u8 = 71;
        const CONFIGURATION: u8 = 78;
        ExitCode::from(match self {
            Self::Start(StartError::Bind { .. }) => UNAVAILABLE,
            Self::Configuration(_) | Self::Telemetry(_) | Self::Start(_) => CONFIGURATION,
            Self::Signals(_) | Self::Randomness(_) => OS,
        })
    }
}

/// Runs the service `name` to its end, which SIGTERM or SIGINT brings about.
///
/// `parse` reads the variables of this service beside those of [`Config`]; `run`
/// serves. `--help` lists the variables. A configuration that is refused ends the
/// process with status 78 before a port is bound.
pub async fn main<C, F>(
    name: &'static str,
    parse: fn(&mut Variables) -> Result<C, Reported>,
    run: fn(C, Server) -> F,
) -> ExitCode
where
    F: Future<Output = Result<(), StartError>>,
{
    if env::args_os().any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", help(name, parse));
        return ExitCode::SUCCESS;
    }
    // A variable that is not UTF-8 is none of ours.
    let variables = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let variables = Variables::new(variables);
    match start(name, variables, parse, run).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{name}: {failure}");
            failure.exit_code()
        }
    }
}

async fn start<C, F>(
    name: &'static str,
    mut variables: Variables,
    parse: fn(&mut Variables) -> Result<C, Reported>,
    run: fn(C, Server) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), StartError>>,
{
    let (shared, own) = (Config::parse(&mut variables), parse(&mut variables));
    let (shared, own) = variables.accept(shared.and_then(|shared| Ok((shared, own?))))?;

    let telemetry = telemetry::install(name, &shared)?;
    let clock = Clock::system();
    let random = StdRng::try_from_rng(&mut SysRng).map_err(Failure::Randomness)?;
    let identifiers = Identifiers::new(clock.clone(), random);
    let shutdown = shutdown_on_signal().map_err(Failure::Signals)?;
    let server = Server::new(name, shared, clock, identifiers, shutdown)?;
    let outcome = run(own, server).await;
    tracing::info!("{name} ends");
    telemetry.flush();
    Ok(outcome?)
}

fn help<C>(name: &str, parse: fn(&mut Variables) -> Result<C, Reported>) -> String {
    let mut variables = Variables::default();
    // Asking for every variable documents it; that none is set is no matter here.
    let _ = (Config::parse(&mut variables), parse(&mut variables));
    format!(
        "{name} of Chandlery. It takes its configuration from the environment:\n\n{}",
        variables.describe()
    )
}

/// Cancelled by the first SIGTERM or SIGINT; the second ends the process at once.
fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let first = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first.is_cancelled() {
                std::process::exit(130);
            }
            first.cancel();
        }
    });
    Ok(shutdown)
}
