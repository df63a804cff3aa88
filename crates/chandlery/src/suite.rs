//! The three services as real processes on loopback, over mutual TLS, with a
//! database file each: for the demonstration, for tests and for development.
//!
//! No process outlives the [`Suite`] that started it, nor the process that it is
//! in, even when that is killed.

mod endpoints;
pub(crate) mod lock;
mod process;
mod replica;

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use client::Identity;
use rand::{SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use service_runtime::{Clock, Timestamp};

use crate::{
    certs::{self, Authority, Leaf, NAMESPACE, TRUST_DOMAIN},
    clients::{Clients, Targets},
    service::Service,
};
use process::{Member, PORT_ATTEMPTS, Program, is_lost_race};

pub use endpoints::{Endpoint, Endpoints};
pub use replica::Replica;

/// The workload that may do what an operator does.
const OPERATOR: &str = "chandlery";

/// How long a certificate is valid that is issued to a caller.
const VALIDITY: Duration = Duration::from_hours(24);

/// How long a service may take to drain before it counts as stuck.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// How to start a suite.
#[derive(Debug)]
pub struct Options {
    /// The binary that offers the services as hidden subcommands.
    pub program: PathBuf,
    /// Where databases, certificates and logs are kept, and found again by a later suite;
    /// made if it is missing.
    pub directory: PathBuf,
    /// Variables of the services beside those that the suite sets. They inherit
    /// none.
    pub environment: Vec<(String, String)>,
    /// Where the time comes from.
    pub clock: Clock,
    /// Where the choice of ports comes from. Suites that start at the same time
    /// need different ones, so this is no place for the seed of a test.
    pub random: StdRng,
}

/// Why a suite cannot do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate could not be issued.
    #[error(transparent)]
    Certificates(#[from] certs::Error),
    /// A certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] client::identity::Error),
    /// A client cannot be built.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A file of the suite cannot be made.
    #[error("{} cannot be written: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// The program cannot be started.
    #[error("{} cannot be started: {cause}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// A process cannot be waited for or signalled.
    #[error("the process of {service} cannot be controlled: {cause}")]
    Control {
        /// The service.
        service: Service,
        /// What went wrong.
        cause: io::Error,
    },
    /// Every port that was tried belongs to another process.
    #[error("no free port was found on 127.0.0.1; end some of the programs that listen there")]
    NoFreePort,
    /// A process of another suite is the service in this directory.
    #[error("{0} is still run by another program on the same directory; end that one first")]
    RunElsewhere(Service),
    /// The process ended before it served.
    #[error("{service} ended before it served ({status}); its log ends so:\n{log}")]
    Ended {
        /// The service.
        service: Service,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// The process runs but does not serve.
    #[error("{service} does not serve after {patience:?}; its log ends so:\n{log}")]
    NotServing {
        /// The service.
        service: Service,
        /// How long it was waited for.
        patience: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// The process did not end when it was told to.
    #[error("{service} has not ended {patience:?} after SIGTERM; its log ends so:\n{log}")]
    NotEnding {
        /// The service.
        service: Service,
        /// How long it was waited for.
        patience: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// There is no process.
    #[error("{0} is not running; restart it first")]
    NotRunning(Service),
    /// The process failed, or did not drain.
    #[error("{service} has not ended as it should ({status}); its log ends so:\n{log}")]
    Unclean {
        /// The service.
        service: Service,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
}

/// A certificate to call the services with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential<'a> {
    /// Of this workload.
    Workload(&'a str),
    /// Of the operator, and expired.
    Expired,
    /// In the name of the operator, of an authority that the services do not trust.
    Foreign,
    /// Of an operator of another trust domain, of the authority that they trust.
    OtherTrustDomain,
}

impl Credential<'_> {
    /// Of the operator.
    pub const OPERATOR: Self = Self::Workload(OPERATOR);
}

/// Three running services. Those that still run when it is dropped are killed.
pub struct Suite {
    program: Program,
    authority: Authority,
    clock: Clock,
    random: StdRng,
    /// By `Service`, in the order of its variants.
    members: [Member; 3],
}

impl Suite {
    /// Makes certificates, starts the services, and waits until each serves.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let mut suite = Self::prepare(options)?;
        suite.launch().await?;
        Ok(suite)
    }

    /// Makes the certificates that are missing or due, and starts nothing yet.
    pub fn prepare(options: Options) -> Result<Self, Error> {
        let Options { program, directory, environment, clock, mut random } = options;
        let certificates = directory.join("certs");
        certs::run(&certs::Args::new(certificates.clone()), &clock)?;
        // The services work there, and the way to it is not theirs.
        let directory = fs::canonicalize(&directory)
            .map_err(|cause| Error::File { path: directory.clone(), cause })?;
        let authority = Authority::load(&certificates)?;
        let operator = Identity::load(&certs::identity_files(&certificates, OPERATOR))?;

        let program = Program { path: program, directory, environment, operator };
        let members = Service::ALL.map(|service| {
            let random = StdRng::from_rng(&mut random);
            Member::new(service, service.name().to_owned(), &program.directory, random)
        });
        Ok(Self { program, authority, clock, random, members })
    }

    /// Has the services where others were before them.
    pub fn place(&mut self, endpoints: &Endpoints) {
        for member in &mut self.members {
            member.place(endpoints.of(member.service));
        }
        self.introduce();
    }

    /// Shows the logs on the standard error from the next start on, and keeps none.
    pub fn show_logs(&mut self) {
        for member in &mut self.members {
            member.log_file = None;
        }
    }

    /// Starts all services, each where it was if nobody else is there by now, and waits
    /// until each serves. Those that run are killed first.
    pub async fn launch(&mut self) -> Result<(), Error> {
        let mut attempts = 0;
        loop {
            match self.try_launch().await {
                // Another process was quicker to take the port.
                Err(error) if is_lost_race(&error) && attempts < PORT_ATTEMPTS => attempts += 1,
                outcome => return outcome,
            }
        }
    }

    async fn try_launch(&mut self) -> Result<(), Error> {
        let mut taken = Vec::new();
        for member in &mut self.members {
            member.end();
            member.claim(&self.program).await?;
            member.choose_ports(&mut taken)?;
        }
        self.introduce();
        let Self { program, members: [user, catalog, purchase], .. } = self;
        tokio::try_join!(user.launch(program), catalog.launch(program))?;
        purchase.launch(program).await
    }

    /// Tells the services where those are that they call.
    fn introduce(&mut self) {
        let [user, catalog, purchase] = &mut self.members;
        let user = ("USER_SERVICE_TARGET", target(user.address()));
        purchase.variables =
            vec![user.clone(), ("CATALOG_SERVICE_TARGET", target(catalog.address()))];
        catalog.variables = vec![user];
    }

    /// Drains a service, and lets another program run it in its place until it is
    /// restarted here.
    pub async fn release(&mut self, service: Service) -> Result<(), Error> {
        let member = self.member(service);
        let ended = match member.process_id() {
            Some(_) => member.terminate(DRAIN_PATIENCE).await.map(drop),
            None => Ok(()),
        };
        member.release();
        ended
    }

    /// Kills a service with SIGKILL, and returns when its process is gone.
    pub fn kill(&mut self, service: Service) -> Result<(), Error> {
        self.member(service).kill()
    }

    /// Starts a service that is not running, where it was, and waits until it serves.
    /// One that is running is left alone.
    pub async fn restart(&mut self, service: Service) -> Result<(), Error> {
        let Self { program, members, .. } = self;
        members[service as usize].restart(program).await
    }

    /// Tells a service to drain with SIGTERM, and waits until it has ended. One that
    /// does not end in half a minute is killed.
    pub async fn terminate(&mut self, service: Service) -> Result<ExitStatus, Error> {
        self.member(service).terminate(DRAIN_PATIENCE).await
    }

    /// Sends SIGTERM to a service and does not wait. [`terminate`](Self::terminate)
    /// waits for it, too.
    pub fn begin_drain(&mut self, service: Service) -> Result<(), Error> {
        self.member(service).signal(Signal::TERM)
    }

    /// Stops a service with SIGSTOP, so that it keeps its connections and answers
    /// nothing.
    pub fn pause(&mut self, service: Service) -> Result<(), Error> {
        self.member(service).signal(Signal::STOP)
    }

    /// Lets a service that was paused go on, with SIGCONT.
    pub fn resume(&mut self, service: Service) -> Result<(), Error> {
        self.member(service).signal(Signal::CONT)
    }

    /// Drains all services that run, callers before those they call. Each must end
    /// with status 0.
    pub async fn stop(mut self) -> Result<(), Error> {
        for member in self.members.iter_mut().rev().filter(|member| member.process_id().is_some()) {
            let status = member.terminate(DRAIN_PATIENCE).await?;
            if !status.success() {
                let log = member.log_tail();
                return Err(Error::Unclean { service: member.service, status, log });
            }
        }
        Ok(())
    }

    /// How a service has ended that was neither killed nor terminated here, if it has
    /// since the last look.
    pub fn ended(&mut self, service: Service) -> Result<Option<ExitStatus>, Error> {
        self.member(service).try_wait()
    }

    /// Whether a service says on both of its ports, within a second or two, that it
    /// serves.
    pub async fn is_serving(&self, service: Service) -> bool {
        self.members[service as usize].is_serving(&self.program.operator).await
    }

    /// The process of a service, if it runs.
    pub fn process_id(&self, service: Service) -> Option<u32> {
        self.members[service as usize].process_id()
    }

    /// Where a service serves RPCs, also while it is not running.
    pub fn address(&self, service: Service) -> SocketAddr {
        self.members[service as usize].address()
    }

    /// Where a service serves health alone, in plaintext.
    pub fn health_address(&self, service: Service) -> SocketAddr {
        self.members[service as usize].health_address()
    }

    /// Where all services serve.
    pub fn endpoints(&self) -> Endpoints {
        let [user_service, catalog_service, purchase_service] =
            self.members.each_ref().map(Member::endpoint);
        Endpoints { user_service, catalog_service, purchase_service }
    }

    /// Where the services are, as [`client::Channel::to`] takes it.
    pub fn targets(&self) -> Targets {
        self.endpoints().targets()
    }

    /// Clients that call as the operator.
    pub fn clients(&self) -> Result<Clients, Error> {
        Ok(Clients::new(&self.targets(), &self.program.operator)?)
    }

    /// Clients that call with another certificate.
    pub fn clients_of(&self, credential: Credential<'_>) -> Result<Clients, Error> {
        Ok(Clients::new(&self.targets(), &self.identity(credential)?)?)
    }

    /// Issues a certificate. Its bearer trusts the services in any case.
    pub fn identity(&self, credential: Credential<'_>) -> Result<Identity, Error> {
        let now = self.clock.now();
        let folder = self.certificates();
        let (name, issued) = match credential {
            Credential::Workload(workload) => {
                let leaf = Leaf::new(workload, NAMESPACE, now, VALIDITY);
                (workload, self.authority.issue(&leaf)?)
            }
            Credential::Expired => {
                let validity = i64::try_from(VALIDITY.as_micros()).unwrap_or(i64::MAX);
                let long_ago = Timestamp::from_micros(now.as_micros().saturating_sub(validity));
                let leaf = Leaf::new(OPERATOR, NAMESPACE, long_ago, VALIDITY / 2);
                ("expired", self.authority.issue(&leaf)?)
            }
            Credential::Foreign => {
                let leaf = Leaf::new(OPERATOR, NAMESPACE, now, VALIDITY);
                ("foreign", Authority::create(TRUST_DOMAIN, now)?.issue(&leaf)?)
            }
            Credential::OtherTrustDomain => {
                let leaf = Leaf::new(OPERATOR, NAMESPACE, now, VALIDITY);
                let authority = Authority::load(&folder)?.vouching_for("elsewhere.example");
                ("elsewhere", authority.issue(&leaf)?)
            }
        };
        // Beside the certificates of the services, which are in use.
        let issued_folder = folder.join("issued");
        fs::create_dir_all(&issued_folder)
            .map_err(|cause| Error::File { path: issued_folder.clone(), cause })?;
        issued.save(&issued_folder, name)?;
        let mut files = certs::identity_files(&issued_folder, name);
        files.trust_bundle = folder.join("ca.crt");
        Ok(Identity::load(&files)?)
    }

    /// The folder of the certificates: `ca.crt`, and `.crt` and `.key` of each
    /// workload.
    pub fn certificates(&self) -> PathBuf {
        self.program.certificates()
    }

    /// The folder that everything is in.
    pub fn directory(&self) -> &Path {
        &self.program.directory
    }

    /// The last lines of the log of a service.
    pub fn log_tail(&self, service: Service) -> String {
        self.members[service as usize].log_tail()
    }

    fn member(&mut self, service: Service) -> &mut Member {
        &mut self.members[service as usize]
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Suite").field(&self.members).finish()
    }
}

/// The last lines of the log of a service in the directory of a suite.
pub(crate) fn log_tail(directory: &Path, service: Service) -> String {
    process::log_tail(&process::log_file(directory, service.name()))
}

fn target(address: SocketAddr) -> String {
    format!("static:///{address}")
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
