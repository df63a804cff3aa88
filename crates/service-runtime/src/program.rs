//! The life of a service process, in order: configuration, telemetry, identity,
//! listeners, serving, drain.

use std::{env, future::Future, process::ExitCode};

use rand::{SeedableRng, rngs::StdRng, rngs::SysRng};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Clock, Config, Identifiers, Server, StartError, Variables,
    config::{Invalid, Reported},
    connection::raise_descriptor_limit,
    telemetry,
};

/// The status of sysexits for what the operating system refuses.
const OS: u8 = 71;

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
        const CONFIGURATION: u8 = 78;
        ExitCode::from(match self {
            Self::Start(StartError::Bind { .. }) => UNAVAILABLE,
            Self::Configuration(_) | Self::Telemetry(_) | Self::Start(_) => CONFIGURATION,
            Self::Signals(_) | Self::Randomness(_) => OS,
        })
    }
}

/// Runs a process to its end on a runtime of its own. What still runs then is left behind:
/// a thread that waits for the operating system, to resolve a name or to write to a disk,
/// must not keep the process from ending.
pub fn block_on(process: impl Future<Output = ExitCode>) -> ExitCode {
    match Runtime::new() {
        Ok(runtime) => {
            let exit_code = runtime.block_on(process);
            runtime.shutdown_background();
            exit_code
        }
        Err(error) => {
            eprintln!("no threads can be started: {error}");
            ExitCode::from(OS)
        }
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

    raise_descriptor_limit();
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

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    #[test]
    fn a_thread_that_hangs_does_not_keep_a_process_from_ending() {
        let (ended, has_ended) = mpsc::channel();
        let (release, hang) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let status = block_on(async {
                tokio::task::spawn_blocking(move || hang.recv());
                ExitCode::from(7)
            });
            ended.send(status).unwrap();
        });
        let status = has_ended.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(status, ExitCode::from(7));
        drop(release);
    }
}
