//! The command line: what there is to do, and what a person or a script is told
//! when it cannot be done.

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand};
use client::Identity;
use console::style;
use service_runtime::Clock;
use tokio::signal::unix::SignalKind;
use tonic::Code;

use crate::{
    call, caller, certs, channel,
    check::{self, Evidence, check},
    clients::{Clients, Targets},
    completions,
    demo::{self, Host},
    dev,
    service::{self, Service},
};

/// The statuses of BSD's sysexits, and what else scripts may tell apart.
const BROKEN: u8 = 1;
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const SOFTWARE: u8 = 70;
const OS: u8 = 71;
const TRY_AGAIN: u8 = 75;
const SIGNALLED: u8 = 128;

/// How long to wait for purchases that are under way before the books are judged.
const QUIET_PATIENCE: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  chandlery                                 the demonstration
  chandlery demo --purchases 2000 --kills 20
  chandlery demo --seed 7                   the same goods and moments again
  chandlery dev                             the suite kept running, with data in .chandlery
  chandlery dev --only catalog-service      one service of it, as it was just built
  chandlery certs --out certs               an authority and a certificate for each workload
  chandlery check --certs certs --user-service static:///127.0.0.1:50051 ...
                                            what must hold, of services that run
  chandlery call ListProducts               any RPC, with JSON in and out
  chandlery channel                         which endpoints of each service can be called
  source <(chandlery completions bash)      completes all of it, names of RPCs included

Exit status:
  0 well; 1 an invariant does not hold, or nothing was killed; 64 wrong usage, or
  certificates that cannot be made or used; 69 a service is away, cannot be reached, or
  refuses the certificate; 70 a service, or a process of one, did not do as it should;
  71 the operating system refuses a file, a folder or a thread; 75 not now, try again;
  130 and 143 cut short by SIGINT and SIGTERM, of which `dev` takes the first as its
  end, with 0. `call` has more, and its --help lists them.

Also user-service, catalog-service and purchase-service: --help of each lists its
variables, and 78 says that they cannot be used.";

/// A ship chandler's shop of three gRPC services that survives kill -9
#[derive(Debug, Parser)]
#[command(name = "chandlery", version, after_help = EXAMPLES)]
struct Cli {
    /// Without one, the demonstration
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Dev(dev::Args),
    Certs(certs::Args),
    Check(CheckArgs),
    Call(call::Args),
    Channel(channel::Args),
    Completions(completions::Args),
    #[command(hide = true, disable_help_flag = true)]
    UserService(service::Args),
    #[command(hide = true, disable_help_flag = true)]
    CatalogService(service::Args),
    #[command(hide = true, disable_help_flag = true)]
    PurchaseService(service::Args),
}

/// Checks what must hold of purchases, stock and ledger, against running services
///
/// Waits for purchases that are under way, reads all books, and shows what holds
/// and what does not. Changes nothing.
#[derive(Debug, clap::Args)]
struct CheckArgs {
    #[command(flatten)]
    targets: Targets,

    /// The folder with ca.crt, chandlery.crt and chandlery.key, as `chandlery certs`
    /// makes it
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,
}

/// Runs the command line to its end.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => {
            let _ = refusal.print();
            return if refusal.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(OS, &format!("no threads can be started: {error}")),
    };
    let status = runtime.block_on(run(cli.command.unwrap_or(Command::Demo(demo::Args::default()))));
    // A thread that waits for the operating system does not keep the process from ending.
    runtime.shutdown_background();
    status
}

async fn run(command: Command) -> ExitCode {
    let clock = Clock::system();
    match command {
        // The story is long, and so is its future.
        Command::Demo(args) => Box::pin(demonstrate(&args, clock)).await,
        Command::Dev(args) => Box::pin(develop(&args, clock)).await,
        Command::Certs(args) => match certs::run(&args, &clock) {
            Ok(summary) => {
                println!("{summary}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(USAGE, &error.to_string()),
        },
        Command::Check(args) => match check_services(&args).await {
            Ok(status) => status,
            Err(failure) => failure,
        },
        Command::Call(args) => match call::run(&args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail(call_status(&failure), &failure.to_string()),
        },
        Command::Channel(args) => match channel::run(&args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail(channel_status(&failure), &failure.to_string()),
        },
        Command::Completions(args) => {
            // Whoever closes the pipe has read enough.
            let _ = io::stdout().write_all(&completions::script(args, &Cli::command()));
            ExitCode::SUCCESS
        }
        Command::UserService(args) => Service::User.run(args).await,
        Command::CatalogService(args) => Service::Catalog.run(args).await,
        Command::PurchaseService(args) => Service::Purchase.run(args).await,
    }
}

fn host(clock: Clock) -> Result<Host, ExitCode> {
    let program = env::current_exe()
        .map_err(|error| fail(OS, &format!("this program does not know its path: {error}")))?;
    Ok(Host { program, environment: inherited(), clock })
}

async fn develop(args: &dev::Args, clock: Clock) -> ExitCode {
    let host = match host(clock) {
        Ok(host) => host,
        Err(failure) => return failure,
    };
    let invoked_as = env::args_os().next().unwrap_or_else(|| "chandlery".into());
    let outcome = dev::run(args, host, &invoked_as.to_string_lossy()).await;
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    let status = match &failure {
        dev::Failure::Running(_) | dev::Failure::Starting(_) | dev::Failure::Taken(_) => TRY_AGAIN,
        dev::Failure::NotRunning(_) | dev::Failure::Abandoned(_) => UNAVAILABLE,
        dev::Failure::File { .. } | dev::Failure::System(_) => OS,
        dev::Failure::Suite(_) | dev::Failure::Goods(_) => SOFTWARE,
        dev::Failure::Killed(signal) => signalled(*signal),
    };
    fail(status, failure.to_string().trim_end())
}

async fn demonstrate(args: &demo::Args, clock: Clock) -> ExitCode {
    let host = match host(clock) {
        Ok(host) => host,
        Err(failure) => return failure,
    };
    let Err(failure) = Box::pin(demo::run(args, host)).await else { return ExitCode::SUCCESS };
    let status = match &failure {
        demo::Failure::Broken(_) | demo::Failure::NothingKilled => BROKEN,
        demo::Failure::Away { .. } => UNAVAILABLE,
        demo::Failure::Folder(_) | demo::Failure::System(_) => OS,
        demo::Failure::Suite(_)
        | demo::Failure::KeepsEnding { .. }
        | demo::Failure::Products(_)
        | demo::Failure::Call(..)
        | demo::Failure::Unanswered { .. }
        | demo::Failure::NotQuiet { .. }
        | demo::Failure::Check(_) => SOFTWARE,
        demo::Failure::Interrupted(signal) => signalled(*signal),
    };
    fail(status, &failure.to_string())
}

fn call_status(failure: &call::Failure) -> u8 {
    match failure {
        call::Failure::Input(_) | call::Failure::AnyService(_) | call::Failure::Client(_) => USAGE,
        call::Failure::Caller(error) => caller_status(error),
        call::Failure::Status(status) if status.code() == Code::Unavailable => UNAVAILABLE,
        call::Failure::Status(status) => call::exit_status(status.code()),
        call::Failure::Answer(_) => SOFTWARE,
        call::Failure::Output(_) => OS,
    }
}

fn caller_status(error: &caller::Error) -> u8 {
    match error {
        caller::Error::Identity(_) => USAGE,
        caller::Error::Endpoints { .. } => UNAVAILABLE,
    }
}

fn channel_status(failure: &channel::Failure) -> u8 {
    match failure {
        channel::Failure::Client(_) => USAGE,
        channel::Failure::Caller(error) => caller_status(error),
        channel::Failure::Uncallable(_) => UNAVAILABLE,
    }
}

async fn check_services(args: &CheckArgs) -> Result<ExitCode, ExitCode> {
    let CheckArgs { targets, certs } = args;
    let identity = operator(certs)?;
    let clients =
        Clients::new(targets, &identity).map_err(|error| fail(USAGE, &error.to_string()))?;
    let evidence = Evidence::collect_when_quiet(&clients, QUIET_PATIENCE)
        .await
        .map_err(|error| refuse(&error))?;
    let report = check(&evidence);
    print!("{report}");
    let unsettled = evidence.unsettled().count();
    if unsettled > 0 {
        println!("{unsettled} purchases are still under way and not judged yet; check again.");
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { BROKEN.into() })
}

fn operator(certs: &Path) -> Result<Identity, ExitCode> {
    Identity::load(&certs::identity_files(certs, "chandlery")).map_err(|error| {
        let folder = certs.display();
        fail(USAGE, &format!("{error}; make certificates with `chandlery certs --out {folder}`"))
    })
}

/// Says what to do about books that cannot be read.
fn refuse(error: &check::Error) -> ExitCode {
    let check::Error::Call(status) = error else {
        return fail(TRY_AGAIN, &error.to_string());
    };
    let (exit_status, advice) = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => {
            (UNAVAILABLE, "start it, or correct the option that says where it is")
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            (UNAVAILABLE, "use the certificate of the workload chandlery that the services trust")
        }
        _ => (SOFTWARE, "look into the log of the service"),
    };
    fail(exit_status, &format!("{error}; {advice}"))
}

/// The status by which a shell tells of a signal.
fn signalled(signal: SignalKind) -> u8 {
    SIGNALLED.saturating_add(u8::try_from(signal.as_raw_value()).unwrap_or_default())
}

fn fail(status: u8, problem: &str) -> ExitCode {
    eprintln!("{}: {problem}", style("chandlery").for_stderr().red().bold());
    status.into()
}

/// The variables that the services of a suite inherit: where programs are, what is
/// logged, and where telemetry goes.
fn inherited() -> Vec<(String, String)> {
    // A variable that is not UTF-8 is none of ours.
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name == "PATH" || name == "RUST_LOG" || name.starts_with("OTEL_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_lists_every_exit_status() {
        let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signalled);
        let statuses = [BROKEN, USAGE, UNAVAILABLE, SOFTWARE, OS, TRY_AGAIN];
        let help = Cli::command().render_long_help().to_string();
        let (_, listed) = help.split_once("Exit status:").unwrap();
        for status in statuses.into_iter().chain(signals).map(|status| status.to_string()) {
            let mut words = listed.split(|it: char| !it.is_ascii_alphanumeric());
            assert!(words.any(|word| word == status), "{status}: {listed}");
        }
    }

    #[test]
    fn services_are_hidden_and_named_as_their_workloads() {
        for service in Service::ALL {
            for option in [service::UNTIL_STDIN_CLOSES, "--help", "-h"] {
                let cli = Cli::try_parse_from(["chandlery", service.name(), option]);
                assert!(cli.is_ok(), "{service} {option}");
            }
            let help = Cli::command().render_long_help().to_string();
            assert!(!help.contains(&format!("\n  {service} ")), "{service}");
            assert!(help.contains(service.name()), "{service}");
        }
    }
}
