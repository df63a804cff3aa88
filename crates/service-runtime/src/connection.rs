//! Connections: accepted, shaken hands with, served, and told to go away.
//!
//! | who | is waited for |
//! |---|---|
//! | a peer that does not shake hands | [`Patience::handshake`], and no longer than there is room |
//! | a caller that does not speak HTTP/2 | [`Patience::preface`] |
//! | a peer that reads nothing of what is written to it | [`Patience::unread`] |
//! | a peer that is told to go away | [`Patience::goodbye`] after its last call |
//! | a caller that is trusted no more | [`Patience::distrust`] to end its calls |

mod accept;
mod backlog;
mod http2;
mod preface;
mod slots;
mod stalled;
#[cfg(test)]
mod tests;

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use client::{Identity, SpiffeId, identity::Renewals, spiffe};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::pki_types::CertificateDer, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::Service;

use self::http2::{CALLER_STREAMS, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, PROBE_STREAMS, Terms};
pub(crate) use self::{
    accept::accept,
    backlog::Backlog,
    http2::FLUSH_TIMEOUT,
    slots::{Limits, Slot, Slots, raise_descriptor_limit},
};
use crate::{
    Clock, Timestamp,
    call::{Call, Rules},
};

/// How long peers are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) handshake: Duration,
    pub(crate) preface: Duration,
    pub(crate) unread: Duration,
    pub(crate) goodbye: Duration,
    pub(crate) distrust: Duration,
}

impl Default for Patience {
    /// A handshake and a preface take a round trip each, so that seconds are for packets
    /// that were lost, and silence ends within ten. Who reads nothing is gone as soon as
    /// who answers nothing.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            preface: Duration::from_secs(3),
            unread: KEEP_ALIVE_INTERVAL + KEEP_ALIVE_TIMEOUT,
            goodbye: Duration::from_secs(1),
            distrust: Duration::from_secs(10),
        }
    }
}

/// How connections and calls learn that the server drains.
#[derive(Clone, Default)]
pub(crate) struct Drain {
    /// Begin no new call, and end those that have no end of their own.
    pub(crate) goaway: CancellationToken,
    /// Begin no call at all: hyper takes those that come until the peer confirms the GOAWAY.
    pub(crate) refuse: CancellationToken,
    /// End every call.
    pub(crate) cut: CancellationToken,
}

impl Drain {
    /// That of one connection, which has a part in that of all.
    fn of_connection(&self) -> Self {
        Self {
            goaway: self.goaway.child_token(),
            refuse: self.refuse.child_token(),
            cut: self.cut.child_token(),
        }
    }
}

/// How callers are served, over mutual TLS.
#[derive(Clone)]
pub(crate) struct Callers {
    /// Changes when the identity is renewed.
    pub(crate) tls: watch::Receiver<TlsAcceptor>,
    pub(crate) identity: Identity,
    pub(crate) clock: Clock,
    pub(crate) routes: Routes,
    pub(crate) rules: Arc<Rules>,
    pub(crate) backlog: Backlog,
    pub(crate) drain: Drain,
    pub(crate) patience: Patience,
}

impl Callers {
    /// Shakes hands with a caller and serves its calls.
    pub(crate) async fn serve(mut self, stream: TcpStream, mut slot: Slot) {
        let drain = self.drain.of_connection();
        let too_late = async {
            drain.goaway.cancelled().await;
            sleep(self.patience.goodbye).await;
        };
        // The first calls may be under way already, so that there is a goodbye even now.
        let shaken = tokio::select! {
            shaken = shake_hands(&mut self.tls, stream, self.patience) => shaken,
            () = too_late => return,
        };
        let Some((mut stream, preface)) = shaken else { return };
        slot.keep();

        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let Self { routes, rules, backlog, patience, .. } = &self;
        let call = Call::new(routes.clone(), Arc::clone(rules), peer(&chain), drain.clone());
        let terms = Terms {
            streams: CALLER_STREAMS,
            drain: drain.clone(),
            patience: *patience,
            backlog: backlog.of_connection(),
        };
        let goodbye = patience.goodbye;
        let handle = move |request| call.clone().serve(request);
        tokio::select! {
            () = http2::serve(&mut stream, &preface, terms, handle) => {}
            never = self.part_when_distrusted(&chain, &drain) => match never {},
        }
        http2::close(&mut stream, goodbye).await;
    }

    /// Has the connection drain when its caller is trusted no more.
    async fn part_when_distrusted(
        &mut self,
        chain: &[CertificateDer<'_>],
        drain: &Drain,
    ) -> Infallible {
        let expiry = chain.iter().filter_map(|it| spiffe::expiry(it).ok()).min();
        let expiry =
            expiry.map(|seconds| Timestamp::from_micros(seconds.saturating_mul(1_000_000)));
        loop {
            let remaining = expiry.map(|expiry| expiry.saturating_since(self.clock.now()));
            // The second in which it expires is its last.
            let expired = sleep(remaining.unwrap_or(Duration::MAX).saturating_add(SECOND));
            tokio::select! {
                renewed = self.tls.changed() => if renewed.is_err() { return pending().await },
                () = expired => {}
            }
            if let Err(error) = self.identity.verify_client(chain) {
                tracing::debug!(%error, "a caller is trusted no more");
                break;
            }
        }
        drain.goaway.cancel();
        let Patience { goodbye, distrust, .. } = self.patience;
        sleep(goodbye).await;
        drain.refuse.cancel();
        sleep(distrust.saturating_sub(goodbye)).await;
        drain.cut.cancel();
        pending().await
    }
}

/// Has handshakes from now on use what the identity is renewed to.
pub(crate) async fn renew(
    identity: &Identity,
    mut renewals: Renewals,
    tls: watch::Sender<TlsAcceptor>,
) -> Infallible {
    loop {
        renewals.next().await;
        match identity.server_config() {
            Ok(config) => drop(tls.send_replace(config.into())),
            Err(error) => tracing::warn!(%error, "the renewed identity cannot serve"),
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// TLS, and then the preface of HTTP/2.
async fn shake_hands(
    tls: &mut watch::Receiver<TlsAcceptor>,
    stream: TcpStream,
    patience: Patience,
) -> Option<(TlsStream<TcpStream>, Vec<u8>)> {
    // Whether what counts now still counts later is judged from here on.
    let acceptor = tls.borrow_and_update().clone();
    let mut stream =
        match timeout(patience.handshake, acceptor.accept(stream).into_fallible()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, mut stream))) => {
                tracing::debug!(%error, "handshake failed");
                http2::close(&mut stream, patience.goodbye).await;
                return None;
            }
            Err(_) => {
                tracing::debug!("handshake took too long");
                return None;
            }
        };
    match timeout(patience.preface, preface::read(&mut stream)).await {
        Ok(Ok(preface)) => return Some((stream, preface)),
        Ok(Err(error)) => tracing::debug!(%error, "the peer does not speak HTTP/2"),
        Err(_) => tracing::debug!("the peer says nothing"),
    }
    None
}

/// The SPIFFE ID that the handshake proved.
fn peer(chain: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    SpiffeId::from_certificate(chain.first()?)
        .inspect_err(|error| tracing::debug!(%error, "the peer has no SPIFFE ID"))
        .ok()
}

/// Answers a probe. Anybody can connect to its port, so that nobody keeps his slot against
/// newcomers.
pub(crate) async fn serve_probe(
    mut stream: TcpStream,
    _slot: Slot,
    routes: Routes,
    backlog: Backlog,
) {
    let patience = Patience::default();
    let Ok(Ok(preface)) = timeout(patience.preface, preface::read(&mut stream)).await else {
        return tracing::debug!("a connection asked nothing");
    };
    let terms = Terms {
        streams: PROBE_STREAMS,
        drain: Drain::default(),
        patience,
        backlog: backlog.of_connection(),
    };
    http2::serve(&mut stream, &preface, terms, move |request| routes.clone().call(request)).await;
    http2::close(&mut stream, patience.goodbye).await;
}
