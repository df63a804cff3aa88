//! Looks after the services while the story lasts: what somebody else ends is told
//! of, counted, and started again where it was.

use std::{convert::Infallible, process::ExitStatus, time::Duration};

use futures::future::join_all;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use super::Failure;
use crate::{
    service::Service,
    suite::{self, Suite},
    terminal::{Terminal, seconds},
};

/// A service that ends so often within [`LOSS_WINDOW`] does not keep running.
pub(super) const LOSS_LIMIT: usize = 5;
pub(super) const LOSS_WINDOW: Duration = Duration::from_secs(5);

/// The suite, shared by those who kill and the one who looks after it.
pub(super) struct Supervisor<'a>(Mutex<Supervised<'a>>);

/// The suite in the hands of one of them.
pub(super) struct Supervised<'a> {
    pub(super) suite: Suite,
    terminal: &'a Terminal,
    /// What ended and was not to, and when.
    losses: Vec<(Service, Instant)>,
}

impl<'a> Supervisor<'a> {
    /// Starts the services, from the beginning if somebody ends one of them.
    pub(super) async fn start(
        options: suite::Options,
        terminal: &'a Terminal,
    ) -> Result<Self, Failure> {
        let suite = Suite::prepare(options)?;
        let mut supervised = Supervised { suite, terminal, losses: Vec::new() };
        loop {
            match supervised.suite.launch().await {
                Err(suite::Error::Ended { service, status, .. }) if !is_own_fault(status) => {
                    supervised.lose(service, status)?;
                }
                outcome => break outcome?,
            }
        }
        Ok(Self(Mutex::new(supervised)))
    }

    /// Restarts what ends, until that is in vain.
    pub(super) async fn run(&self) -> Result<Infallible, Failure> {
        let mut child_signals = signal(SignalKind::child())
            .map_err(|error| Failure::System(format!("no signal handler: {error}")))?;
        loop {
            drop(self.attend().await?);
            child_signals.recv().await;
        }
    }

    /// The suite, and nothing has ended in it that was not to.
    pub(super) async fn attend(&self) -> Result<MutexGuard<'_, Supervised<'a>>, Failure> {
        let mut supervised = self.0.lock().await;
        supervised.revive().await?;
        Ok(supervised)
    }

    /// The services that do not say that they serve.
    pub(super) async fn away(&self) -> Vec<Service> {
        let Supervised { suite, .. } = &*self.0.lock().await;
        let asked = Service::ALL.map(async |it| (!suite.is_serving(it).await).then_some(it));
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Drains all services, callers before those they call, and says how many have
    /// ended before that and were not to.
    pub(super) async fn stop(&self) -> Result<usize, Failure> {
        let mut supervised = self.attend().await?;
        for service in Service::ALL.into_iter().rev() {
            let status = supervised.suite.terminate(service).await?;
            if !status.success() {
                supervised.lose(service, status)?;
            }
        }
        Ok(supervised.losses.len())
    }
}

impl Supervised<'_> {
    /// Starts a service again, also if somebody ends it before it serves.
    pub(super) async fn restart(&mut self, service: Service) -> Result<(), Failure> {
        loop {
            match self.suite.restart(service).await {
                Err(suite::Error::Ended { status, .. }) if !is_own_fault(status) => {
                    self.lose(service, status)?;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    async fn revive(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut lost = Vec::new();
        for service in Service::ALL {
            if let Some(status) = self.suite.ended(service)? {
                self.lose(service, status)?;
                lost.push(service);
            }
        }
        for service in lost {
            self.restart(service).await?;
            let process_id = self.suite.process_id(service).unwrap_or_default();
            let away = seconds(begin.elapsed());
            let text = format!("{service} serves again after {away}, process {process_id}");
            self.terminal.event("restart", text);
        }
        Ok(())
    }

    /// Tells of an end that the story has not brought about, and fails if the service
    /// is not to be kept running.
    fn lose(&mut self, service: Service, status: ExitStatus) -> Result<(), Failure> {
        let log = || self.suite.log_tail(service);
        if is_own_fault(status) {
            return Err(suite::Error::Unclean { service, status, log: log() }.into());
        }
        self.terminal.event("outside", format!("{service} ended ({status}), not by this story"));
        let is_recent =
            |loss: &&(Service, Instant)| loss.0 == service && loss.1.elapsed() < LOSS_WINDOW;
        if self.losses.iter().filter(is_recent).count() + 1 >= LOSS_LIMIT {
            return Err(Failure::KeepsEnding { service, status, log: log() });
        }
        self.losses.push((service, Instant::now()));
        Ok(())
    }
}

/// Whether a service says by its status that it cannot run, in the codes of BSD's
/// sysexits.
fn is_own_fault(status: ExitStatus) -> bool {
    matches!(status.code(), Some(64..=78))
}
