//! Connections: TCP and TLS to the first address of a target that answers, and
//! what to say when none does.

use std::{
    error::Error as StdError,
    fmt, io,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::Authority;
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long one address may take to accept a connection and to shake hands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a peer may be found: `static:///host:port`, or several addresses
/// separated by commas. A configuration that holds one has checked it already.
#[derive(Clone, Debug)]
pub struct Target(Vec<Address>);

#[derive(Clone, Debug)]
struct Address {
    authority: Authority,
    server_name: ServerName<'static>,
}

impl Target {
    /// What `:authority` says to the peer.
    pub(crate) fn authority(&self) -> &Authority {
        &self.0[0].authority
    }
}

impl FromStr for Target {
    type Err = String;

    /// Says what is wrong with a target, for a person to read.
    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix("static:///")
            .ok_or("its scheme is not static:///")?
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not an address");
        let authority: Authority = text.parse().map_err(|_| invalid())?;
        if authority.as_str().contains('@') {
            return Err(invalid());
        }
        if authority.port_u16().is_none_or(|port| port == 0) {
            return Err(format!("{text:?} has no port"));
        }
        let host = authority.host().trim_matches(['[', ']']);
        let server_name = ServerName::try_from(host.to_owned()).map_err(|_| invalid())?;
        Ok(Self { authority, server_name })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.0.iter().enumerate() {
            write!(formatter, "{}{address}", if index == 0 { "static:///" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(formatter)
    }
}

/// Why no address could be connected to: the reason of each.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreachable(String);

/// Connects to a target. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector(Arc<State>);

struct State {
    target: Target,
    tls: TlsConnector,
    /// The index of the address that worked last, which is tried first.
    preferred: AtomicUsize,
}

impl Connector {
    pub(crate) fn new(target: Target, tls: Arc<ClientConfig>) -> Self {
        Self(Arc::new(State { target, tls: tls.into(), preferred: AtomicUsize::new(0) }))
    }

    pub(crate) async fn connect(self) -> Result<TokioIo<TlsStream<TcpStream>>, Unreachable> {
        let Target(addresses) = &self.0.target;
        let preferred = self.0.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for index in (0..addresses.len()).map(|offset| (preferred + offset) % addresses.len()) {
            let address = &addresses[index];
            let reason = match timeout(CONNECT_TIMEOUT, self.open(address)).await {
                Ok(Ok(stream)) => {
                    self.0.preferred.store(index, Ordering::Relaxed);
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => explain(&error),
                Err(_) => format!("no connection within {CONNECT_TIMEOUT:?}"),
            };
            failures.push(match addresses.len() {
                1 => reason,
                _ => format!("{address}: {reason}"),
            });
        }
        Err(Unreachable(failures.join("; ")))
    }

    async fn open(&self, address: &Address) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address.authority.as_str()).await?;
        stream.set_nodelay(true)?;
        self.0.tls.connect(address.server_name.clone(), stream).await
    }
}

/// Says why the peer could not be reached or was lost, from the first error of
/// the chain that tells.
pub(crate) fn cause(error: &(dyn StdError + 'static)) -> String {
    chain(error)
        .find_map(|error| {
            let unreachable = error.downcast_ref::<Unreachable>();
            unreachable.map(ToString::to_string).or_else(|| error.downcast_ref().map(explain))
        })
        .unwrap_or_else(|| "the connection was lost".to_owned())
}

/// An error and its sources.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn explain(error: &io::Error) -> String {
    let tls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls_error {
        None => error.to_string(),
        Some(rustls::Error::InvalidCertificate(problem)) => match problem {
            CertificateError::Other(reason) => format!("another peer answered: {reason}"),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate of the peer has expired".to_owned()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "no authority of the trust bundle issued the certificate of the peer".to_owned()
            }
            problem => format!("the certificate of the peer is refused: {problem}"),
        },
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_target_is_one_or_more_addresses() {
        for (text, count) in
            [("static:///127.0.0.1:1", 1), ("static:///[::1]:1,localhost:2,a.b.svc:3", 3)]
        {
            let Target(addresses) = text.parse().unwrap();
            assert_eq!(addresses.len(), count, "{text}");
            assert_eq!(Target(addresses).to_string(), text);
        }
    }

    #[test]
    fn a_target_of_another_form_is_refused() {
        for (text, expected) in [
            ("", "its scheme is not static:///"),
            ("127.0.0.1:1", "its scheme is not static:///"),
            ("dns:///localhost:1", "its scheme is not static:///"),
            ("static:///", r#""" is not an address"#),
            ("static:///localhost", r#""localhost" has no port"#),
            ("static:///localhost:0", r#""localhost:0" has no port"#),
            ("static:///a:1,,b:2", r#""" is not an address"#),
            ("static:///me@a:1", r#""me@a:1" is not an address"#),
            ("static:///a:1/b", r#""a:1/b" is not an address"#),
        ] {
            assert_eq!(text.parse::<Target>().unwrap_err(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_target_is_written_as_it_was_read(
            text in r"static:///([a-z0-9.-]{1,9}|\[[0-9a-f:]{2,9}\]):[0-9]{1,6}(,[a-z.]{1,5}:[1-9])?|static:///\PC*|\PC*",
        ) {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert!(target.authority().port_u16().is_some_and(|port| port > 0));
                prop_assert_eq!(target.to_string(), text);
            }
        }
    }
}
