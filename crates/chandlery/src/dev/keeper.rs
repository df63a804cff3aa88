//! Looks after the services: what ends is started again, and what is wanted elsewhere
//! is let go until it is given back.

use std::{convert::Infallible, path::Path, process::ExitStatus, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use super::{Failure, POLL_INTERVAL, failed, system, wanted_file};
use crate::{
    service::Service,
    suite::{Suite, lock},
    terminal::{Terminal, seconds},
};

/// How long to wait before a service is started again. It doubles with every end.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest wait.
const BACK_OFF_LIMIT: Duration = Duration::from_secs(10);
/// A service that has run for so long ends as if for the first time.
const STEADY: Duration = Duration::from_secs(30);

/// The services, and what is to be done about each.
pub(super) struct Keeper<'a> {
    suite: &'a mut Suite,
    folder: &'a Path,
    terminal: &'a Terminal,
    /// By `Service`, in the order of its variants.
    states: [State; 3],
}

#[derive(Clone, Copy)]
enum State {
    /// It runs since then, after so many ends in a row.
    Running { since: Instant, ends: u32 },
    /// It is to be started then.
    Away { until: Instant, ends: u32 },
    /// It is run elsewhere.
    Lent,
}

impl<'a> Keeper<'a> {
    /// Begins with services that run.
    pub(super) fn new(suite: &'a mut Suite, folder: &'a Path, terminal: &'a Terminal) -> Self {
        let states = [State::Running { since: Instant::now(), ends: 0 }; 3];
        Self { suite, folder, terminal, states }
    }

    /// Looks after them for ever.
    pub(super) async fn run(mut self) -> Result<Infallible, Failure> {
        let mut child_signals = signal(SignalKind::child()).map_err(system)?;
        loop {
            for service in Service::ALL {
                self.attend(service).await?;
            }
            tokio::select! {
                _ = child_signals.recv() => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }

    async fn attend(&mut self, service: Service) -> Result<(), Failure> {
        let wanted_file = wanted_file(self.folder, service);
        let is_wanted = lock::is_held(&wanted_file).map_err(failed(&wanted_file))?;
        let next = match self.states[service as usize] {
            State::Lent if is_wanted => None,
            State::Lent => Some(self.start(service, 0).await),
            _ if is_wanted => Some(self.lend(service).await),
            State::Running { since, ends } => self
                .suite
                .ended(service)?
                .map(|status| self.lose(service, status, since.elapsed(), ends)),
            State::Away { until, ends } if Instant::now() >= until => {
                Some(self.start(service, ends).await)
            }
            State::Away { .. } => None,
        };
        if let Some(next) = next {
            self.states[service as usize] = next;
        }
        Ok(())
    }

    async fn lend(&mut self, service: Service) -> State {
        if let Err(error) = self.suite.release(service).await {
            self.terminal.event("outside", error.to_string().trim_end());
        }
        let text = format!("{service} is run elsewhere, by `chandlery dev --only {service}`");
        self.terminal.event("outside", text);
        State::Lent
    }

    fn lose(&self, service: Service, status: ExitStatus, after: Duration, ends: u32) -> State {
        let ends = if after < STEADY { ends } else { 0 };
        let wait = back_off(ends);
        let text = format!("{service} ended ({status}); it is started again in {}", seconds(wait));
        self.terminal.event("outside", text);
        State::Away { until: Instant::now() + wait, ends: ends + 1 }
    }

    async fn start(&mut self, service: Service, ends: u32) -> State {
        match self.suite.restart(service).await {
            Ok(()) => {
                let process_id = self.suite.process_id(service).unwrap_or_default();
                let text = format!("{service} serves again, process {process_id}");
                self.terminal.event("restart", text);
                State::Running { since: Instant::now(), ends }
            }
            Err(error) => {
                let wait = back_off(ends);
                let error = error.to_string();
                let text = format!("{}\n  next attempt in {}", error.trim_end(), seconds(wait));
                self.terminal.event("outside", text);
                State::Away { until: Instant::now() + wait, ends: ends + 1 }
            }
        }
    }
}

fn back_off(ends: u32) -> Duration {
    FIRST_BACK_OFF.saturating_mul(2_u32.saturating_pow(ends)).min(BACK_OFF_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        assert_eq!(back_off(0), Duration::from_millis(100));
        assert_eq!(back_off(3), Duration::from_millis(800));
        assert_eq!(back_off(u32::MAX), BACK_OFF_LIMIT);
    }
}
