//! One service, run in place of the one that a `chandlery dev` keeps running: on its
//! ports, with its database and its certificates, for as long as this process lives.

use std::{convert::Infallible, io, path::Path};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    Failure, Interrupts, LOCK_FILE, LOCK_PATIENCE, POLL_INTERVAL, end, failed, system, wanted_file,
};
use crate::{
    service::Service,
    suite::{self, Endpoints, Suite, lock},
    terminal::Terminal,
};

/// Takes the service, runs it until the process is told to end, and gives it back.
pub(super) async fn run(
    service: Service,
    options: suite::Options,
    interrupts: &mut Interrupts,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let folder = &options.directory.clone();
    if !folder.is_dir() || !is_kept(folder)? {
        return Err(Failure::NotRunning(folder.clone()));
    }
    let endpoints = Endpoints::read(folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Starting(folder.clone()),
        _ => failed(folder)(error),
    })?;
    let wanted_file = wanted_file(folder, service);
    let wanted = lock::acquire(&wanted_file, LOCK_PATIENCE).await.map_err(failed(&wanted_file))?;
    let Some(_wanted) = wanted else { return Err(Failure::Taken(service)) };

    let mut suite = Suite::prepare(options)?;
    suite.place(&endpoints);
    suite.show_logs();
    let outcome = tokio::select! {
        outcome = serve(service, &mut suite, folder, terminal) => {
            outcome.map(|never| match never {})
        }
        _ = interrupts.next() => Ok(()),
    };
    end(outcome, suite, interrupts, terminal).await
}

async fn serve(
    service: Service,
    suite: &mut Suite,
    folder: &Path,
    terminal: &Terminal,
) -> Result<Infallible, Failure> {
    let mut child_signals = signal(SignalKind::child()).map_err(system)?;
    // Returns when the one that is kept running has drained, and this one serves.
    suite.restart(service).await?;
    let (address, process_id) = (suite.address(service), suite.process_id(service));
    terminal.line(format_args!(
        "{service} is run here now, {address}, process {}; Ctrl-C gives it back",
        process_id.unwrap_or_default()
    ));
    while is_kept(folder)? {
        if let Some(status) = suite.ended(service)? {
            let log = suite.log_tail(service);
            return Err(suite::Error::Unclean { service, status, log }.into());
        }
        tokio::select! {
            _ = child_signals.recv() => {}
            () = sleep(POLL_INTERVAL) => {}
        }
    }
    Err(Failure::Abandoned(folder.to_owned()))
}

/// Whether somebody keeps the other services running.
fn is_kept(folder: &Path) -> Result<bool, Failure> {
    let lock_file = folder.join(LOCK_FILE);
    lock::is_held(&lock_file).map_err(failed(&lock_file))
}
