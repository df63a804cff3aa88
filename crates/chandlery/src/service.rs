//! The services as hidden subcommands, so that one program is all that the suite
//! needs to start its processes.

use std::{fmt, io, process, process::ExitCode, thread};

use clap::{ValueEnum, builder::PossibleValue};

/// One of the three services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// user-service.
    User,
    /// catalog-service.
    Catalog,
    /// purchase-service.
    Purchase,
}

impl Service {
    /// Every service, those that others call first.
    pub const ALL: [Self; 3] = [Self::User, Self::Catalog, Self::Purchase];

    /// The name of its workload, its crate and its subcommand.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => user_service::NAME,
            Self::Catalog => catalog_service::NAME,
            Self::Purchase => purchase_service::NAME,
        }
    }

    /// Runs the service in this process, as its own binary does.
    pub async fn run(self, args: Args) -> ExitCode {
        if args.until_stdin_closes {
            end_with_stdin();
        }
        match self {
            Self::User => user_service::main().await,
            Self::Catalog => catalog_service::main().await,
            Self::Purchase => purchase_service::main().await,
        }
    }
}

impl ValueEnum for Service {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Runs one of the services, which is configured by its environment
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Ends at once when the standard input closes, which it does when the process
    /// that holds its other end is gone, however it went
    #[arg(long)]
    pub until_stdin_closes: bool,

    /// Lists the variables that configure the service
    // The service looks for it itself, as its own binary does.
    #[arg(long, short)]
    pub help: bool,
}

/// [`Args::until_stdin_closes`], as [`Suite`](crate::suite::Suite) gives it.
pub(crate) const UNTIL_STDIN_CLOSES: &str = "--until-stdin-closes";

fn end_with_stdin() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        process::exit(1);
    });
}
