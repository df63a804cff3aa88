//! One process of a suite: its ports, its database, its log, its life.

use std::{
    fs::{self, File},
    iter,
    net::{SocketAddr, TcpListener},
    ops::Range,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use client::Identity;
use rand::{RngExt, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};
use tonic::{Status, transport};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{DRAIN_PATIENCE, Endpoint, Error, lock, loopback, target};
use crate::{certs, clients, service};
use service::Service;

/// Below the ephemeral ports of every system: while a killed service is away, no
/// outgoing connection takes its port.
const PORTS: Range<u16> = 20_000..32_000;

/// How often to look for a free port, and to start a service that lost its port to
/// another process in between.
pub(super) const PORT_ATTEMPTS: u32 = 20;

/// The status that a service ends with when it cannot listen on its ports.
const CANNOT_LISTEN: i32 = 69;

/// How long a service may take to serve. It migrates its database first.
const START_PATIENCE: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of a log is shown when its service fails.
const LOG_TAIL_LINES: usize = 20;

/// What the processes of a suite have in common.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) environment: Vec<(String, String)>,
    pub(super) operator: Identity,
}

impl Program {
    pub(super) fn certificates(&self) -> PathBuf {
        self.directory.join("certs")
    }

    /// Where the process of this name keeps its data.
    pub(super) fn database_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.db"))
    }

    fn spawn(&self, member: &Member, claim: File) -> Result<Process, Error> {
        let Member { service, name, log_file, grpc_port, health_port, variables, .. } = member;
        let log = match log_file {
            Some(path) => File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|cause| Error::File { path: path.clone(), cause })?
                .into(),
            None => Stdio::inherit(),
        };
        let tls = certs::identity_files(&self.certificates(), service.name());
        Command::new(&self.path)
            .arg(service.name())
            .arg(service::UNTIL_STDIN_CLOSES)
            .env_clear()
            .env("GRPC_LISTEN_ADDRESS", loopback(*grpc_port).to_string())
            .env("HEALTH_LISTEN_ADDRESS", loopback(*health_port).to_string())
            .env("TLS_CERTIFICATE_FILE", tls.certificate)
            .env("TLS_PRIVATE_KEY_FILE", tls.private_key)
            .env("TLS_TRUST_BUNDLE_FILE", tls.trust_bundle)
            .env("DATABASE_FILE", self.database_file(name))
            .env("LOG_FORMAT", "text")
            .env("NO_COLOR", "1")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            // Nothing is written there; it is open for as long as the process lives.
            .stdout(claim)
            .stderr(log)
            // A Ctrl-C on the terminal is for the supervisor to handle.
            .process_group(0)
            .spawn()
            .map(|child| Process { child, is_draining: false })
            .map_err(|cause| Error::Spawn { program: self.path.clone(), cause })
    }
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    /// A second SIGTERM would end the process at once.
    is_draining: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both do nothing if it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One process of a suite, while it runs and while it does not.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) service: Service,
    /// What its files are called: as the service, if it is the suite's own.
    pub(super) name: String,
    /// Variables that only this service has.
    pub(super) variables: Vec<(&'static str, String)>,
    /// None if the log goes to the standard error.
    pub(super) log_file: Option<PathBuf>,
    random: StdRng,
    grpc_port: u16,
    health_port: u16,
    /// A lock that the process inherits, so that there is one process of the name in the
    /// directory at a time, even when its supervisor is killed.
    claim: Option<File>,
    process: Option<Process>,
}

impl Member {
    pub(super) fn new(service: Service, name: String, directory: &Path, random: StdRng) -> Self {
        Self {
            service,
            variables: Vec::new(),
            log_file: Some(log_file(directory, &name)),
            name,
            random,
            grpc_port: 0,
            health_port: 0,
            claim: None,
            process: None,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        loopback(self.grpc_port)
    }

    pub(super) fn health_address(&self) -> SocketAddr {
        loopback(self.health_port)
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint { grpc: self.address(), health: self.health_address() }
    }

    pub(super) fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// Has the service on these ports from its next start on, if they are free then.
    pub(super) fn place(&mut self, endpoint: Endpoint) {
        self.grpc_port = endpoint.grpc.port();
        self.health_port = endpoint.health.port();
    }

    /// Waits until no other process is the service in this directory, and keeps others
    /// from becoming it.
    pub(super) async fn claim(&mut self, program: &Program) -> Result<File, Error> {
        let path = program.directory.join(format!("{}.lock", self.name));
        let failed = |cause| Error::File { path: path.clone(), cause };
        let claim = match self.claim.take() {
            Some(claim) => claim,
            None => lock::acquire(&path, DRAIN_PATIENCE)
                .await
                .map_err(failed)?
                .ok_or(Error::RunElsewhere(self.service))?,
        };
        let inherited = claim.try_clone().map_err(failed)?;
        self.claim = Some(claim);
        Ok(inherited)
    }

    /// Kills the process if there is one.
    pub(super) fn end(&mut self) {
        self.process = None;
    }

    /// Lets another process become the service, once that of this suite has ended.
    pub(super) fn release(&mut self) {
        self.claim = None;
    }

    /// Keeps the ports that the service had if they are free, and else chooses others.
    pub(super) fn choose_ports(&mut self, taken: &mut Vec<u16>) -> Result<(), Error> {
        let Self { random, grpc_port, health_port, .. } = self;
        for port in [grpc_port, health_port] {
            let others = (0..PORT_ATTEMPTS).map(|_| random.random_range(PORTS));
            let is_free = |port: &u16| *port != 0 && !taken.contains(port) && is_free(*port);
            *port = iter::once(*port).chain(others).find(is_free).ok_or(Error::NoFreePort)?;
            taken.push(*port);
        }
        Ok(())
    }

    /// Starts the service on the ports that it had, if it is not running.
    pub(super) async fn restart(&mut self, program: &Program) -> Result<(), Error> {
        let mut attempts = 0;
        while self.process.is_none() {
            match self.launch(program).await {
                // Another suite is looking whether the port is free.
                Err(error) if is_lost_race(&error) && attempts < PORT_ATTEMPTS => attempts += 1,
                outcome => return outcome,
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Starts the service, which is not running, where it was.
    pub(super) async fn launch(&mut self, program: &Program) -> Result<(), Error> {
        let claim = self.claim(program).await?;
        self.process = Some(program.spawn(self, claim)?);
        let end = Instant::now() + START_PATIENCE;
        loop {
            let serves = self.is_serving(&program.operator).await;
            // Looked at last, since another process may have answered for it.
            if let Some(status) = self.try_wait()? {
                let (service, log) = (self.service, self.log_tail());
                return Err(Error::Ended { service, status, log });
            }
            if serves {
                return Ok(());
            }
            if Instant::now() >= end {
                self.process = None;
                let (service, log) = (self.service, self.log_tail());
                return Err(Error::NotServing { service, patience: START_PATIENCE, log });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether the service says so on both of its ports: as a probe of Kubernetes
    /// asks, and as its callers will.
    pub(super) async fn is_serving(&self, operator: &Identity) -> bool {
        self.ask_health(operator).await.is_ok_and(|is_serving| is_serving)
    }

    async fn ask_health(&self, operator: &Identity) -> Result<bool, Status> {
        let probe = transport::Endpoint::from_shared(format!("http://{}", self.health_address()))
            .map_err(|error| Status::internal(error.to_string()))?
            .connect_timeout(PROBE_TIMEOUT)
            .connect()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let channel = clients::channel(self.service, &target(self.address()), operator)
            .map_err(|error| Status::internal(error.to_string()))?;
        let probed = HealthClient::new(probe).check(health_request()).await?.into_inner();
        let called = HealthClient::new(channel).check(health_request()).await?.into_inner();
        let serving = ServingStatus::Serving;
        Ok(probed.status() == serving && called.status() == serving)
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let service = self.service;
        // A process that was waited for is gone, and its number may be another's.
        let process = match self.try_wait()? {
            None => self.process.as_mut().ok_or(Error::NotRunning(service))?,
            Some(_) => return Err(Error::NotRunning(service)),
        };
        if signal == Signal::TERM && std::mem::replace(&mut process.is_draining, true) {
            return Ok(());
        }
        kill_process(Pid::from_child(&process.child), signal)
            .map_err(|cause| Error::Control { service, cause: cause.into() })
    }

    pub(super) fn kill(&mut self) -> Result<(), Error> {
        let service = self.service;
        let mut process = self.process.take().ok_or(Error::NotRunning(service))?;
        let control = |cause| Error::Control { service, cause };
        process.child.kill().map_err(control)?;
        process.child.wait().map_err(control)?;
        Ok(())
    }

    pub(super) async fn terminate(&mut self, patience: Duration) -> Result<ExitStatus, Error> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                self.process = None;
                let (service, log) = (self.service, self.log_tail());
                return Err(Error::NotEnding { service, patience, log });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// How the process ended, if it has since the last look.
    pub(super) fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        let service = self.service;
        let Some(process) = &mut self.process else { return Ok(None) };
        let status = process.child.try_wait().map_err(|cause| Error::Control { service, cause })?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    pub(super) fn log_tail(&self) -> String {
        self.log_file.as_deref().map_or_else(|| "  (it is above)\n".to_owned(), log_tail)
    }
}

pub(super) fn log_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

pub(super) fn log_tail(log_file: &Path) -> String {
    let log = fs::read(log_file).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    let first = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[first..].iter().flat_map(|line| ["  ", line, "\n"]).collect()
}

fn health_request() -> tonic::Request<HealthCheckRequest> {
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(PROBE_TIMEOUT);
    request
}

/// Whether a service has ended because another process was quicker to take its port.
pub(super) fn is_lost_race(error: &Error) -> bool {
    matches!(error, Error::Ended { status, .. } if status.code() == Some(CANNOT_LISTEN))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(loopback(port)).is_ok()
}
