//! A further process of a service beside the suite's own, so that its callers have more
//! than one endpoint to choose from.

use std::{fmt, net::SocketAddr, path::PathBuf, process::ExitStatus};

use rand::{SeedableRng, rngs::StdRng};
use rustix::process::Signal;

use super::{
    DRAIN_PATIENCE, Error, Suite,
    process::{self, Member, Program},
};
use crate::service::Service;

/// A process of a service with a database, a log and ports of its own, and the
/// certificate of all processes of the service. Killed when it is dropped.
pub struct Replica {
    program: Program,
    member: Member,
}

impl Suite {
    /// A further process of a service, which is not started yet. Its files are called
    /// after the service and `suffix`; it has the variables that the suite's own process
    /// has.
    pub fn replica(&mut self, service: Service, suffix: &str) -> Result<Replica, Error> {
        let program = self.program.clone();
        let random = StdRng::from_rng(&mut self.random);
        let name = format!("{service}-{suffix}");
        let mut member = Member::new(service, name, &program.directory, random);
        member.variables.clone_from(&self.members[service as usize].variables);
        // Those of a process that is away for the moment are taken, too.
        let endpoints = self.members.iter().map(Member::endpoint);
        let mut taken = endpoints.flat_map(|it| [it.grpc.port(), it.health.port()]).collect();
        member.choose_ports(&mut taken)?;
        Ok(Replica { program, member })
    }
}

impl Replica {
    /// Starts the process if it is not running, where it was, and waits until it serves.
    pub async fn start(&mut self) -> Result<(), Error> {
        self.member.restart(&self.program).await
    }

    /// Kills the process with SIGKILL, and returns when it is gone.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.member.kill()
    }

    /// Tells the process to drain with SIGTERM, and waits until it has ended. One that
    /// does not end in half a minute is killed.
    pub async fn terminate(&mut self) -> Result<ExitStatus, Error> {
        self.member.terminate(DRAIN_PATIENCE).await
    }

    /// Stops the process with SIGSTOP, so that it keeps its connections and answers
    /// nothing.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.member.signal(Signal::STOP)
    }

    /// Lets the process go on, with SIGCONT.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.member.signal(Signal::CONT)
    }

    /// The process, if it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.member.process_id()
    }

    /// Where it serves RPCs, also while it is not running.
    pub fn address(&self) -> SocketAddr {
        self.member.address()
    }

    /// The file of its database. One that is there before the first start is taken up.
    pub fn database_file(&self) -> PathBuf {
        self.program.database_file(&self.member.name)
    }

    /// The file that it logs to.
    pub fn log_file(&self) -> PathBuf {
        process::log_file(&self.program.directory, &self.member.name)
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Replica").field(&self.member).finish()
    }
}
