//! Accepts connections for ever, whatever the peers and the operating system do.

use std::{convert::Infallible, fmt::Display, future::Future, io, net::SocketAddr, time::Duration};

use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::TaskTracker;

use super::slots::{Slot, Slots};

/// How long to wait before accepting again when accepting fails, which it does when the
/// process runs out of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);
/// When none was refused for so long, those that were before are an episode that is over.
const QUIET: Duration = Duration::from_secs(10);

/// Serves each connection in a task of its own, for as long as it has its slot.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    slots: Slots,
    connections: &TaskTracker,
    mut serve: impl FnMut(TcpStream, Slot) -> F,
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut crush = Crush { address: listener.local_addr().ok(), count: 0, last: Instant::now() };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = crush.over() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                if slots.are_full() {
                    crush.grow(&"there are as many as there may be");
                    slots.make_room().await;
                }
                // Without a slot it is closed at once: its peer finds another replica.
                if let Some(slot) = slots.take() {
                    // Answers are small; Nagle's algorithm would hold them back.
                    let _ = stream.set_nodelay(true);
                    let (evicted, served) = (slot.evicted(), serve(stream, slot));
                    connections.spawn(async move {
                        tokio::select! {
                            biased;
                            () = evicted.cancelled() => tracing::debug!("gave way"),
                            () = served => {}
                        }
                    });
                }
            }
            Err(error) if is_of_peer(&error) => tracing::debug!(%error, "it went before it came"),
            Err(error) => {
                crush.grow(&error);
                if is_of_process(&error) {
                    slots.evict_oldest();
                }
                sleep(BACK_OFF).await;
            }
        }
    }
}

/// Whether accepting failed for one connection, and may be tried for the next at once.
fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Whether accepting failed for want of what an open connection uses up.
fn is_of_process(error: &io::Error) -> bool {
    let used_up = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| used_up.contains(&errno))
}

/// More connections than can be had, of which the log tells when it begins and when it is
/// over.
struct Crush {
    address: Option<SocketAddr>,
    /// How often there was no room for a newcomer.
    count: u64,
    last: Instant,
}

impl Crush {
    fn grow(&mut self, cause: &dyn Display) {
        if self.count == 0 {
            let Self { address, .. } = self;
            tracing::warn!(?address, %cause, "no room for connections: half-open or new ones are closed");
        }
        self.count += 1;
        self.last = Instant::now();
    }

    async fn over(&mut self) {
        if self.count == 0 {
            return std::future::pending().await;
        }
        sleep_until(self.last + QUIET).await;
        let Self { address, count, .. } = self;
        tracing::info!(?address, count, "there is room for connections again");
        self.count = 0;
    }
}
