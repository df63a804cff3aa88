//! Targets: where a peer may be found, as configuration says it, and the addresses
//! that this comes to.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    os::unix,
    path::Path,
    str::FromStr,
    sync::Arc,
};

use http::uri::Authority;
use rustls::pki_types::ServerName;

/// Where a peer may be found. A configuration that holds one has checked it already.
///
/// | form | addresses |
/// |---|---|
/// | `static:///host:port[,host:port]...` | these, for ever |
/// | `dns:///host:port` | those that the name has, asked again from time to time |
/// | `unix:///absolute/path` | the socket of this path |
#[derive(Clone, Debug)]
pub struct Target {
    text: Arc<str>,
    place: Place,
}

/// What the addresses of a target come from.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The configuration names them.
    Fixed(Arc<[Address]>),
    /// The resolver of the system knows them.
    Dns(Name),
}

/// Where one endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// A host and a port.
    Tcp {
        /// What to connect to, `host:port`.
        at: Arc<str>,
        /// What the host is called; not what it is resolved to.
        name: Name,
    },
    /// A socket in the file system.
    Unix(Arc<Path>),
}

/// The name or number of a host, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    authority: Authority,
    server_name: ServerName<'static>,
}

impl Target {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl Address {
    /// What `:authority` says to the peer.
    pub(crate) fn authority(&self) -> Authority {
        match self {
            Self::Tcp { name, .. } => name.authority.clone(),
            Self::Unix(_) => Authority::from_static("localhost"),
        }
    }

    /// What TLS calls the peer, which is verified by its SPIFFE ID and not by this.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        match self {
            Self::Tcp { name, .. } => name.server_name.clone(),
            Self::Unix(_) => ServerName::IpAddress(Ipv4Addr::LOCALHOST.into()),
        }
    }
}

impl Name {
    /// `host:port`, as a resolver takes it.
    pub(crate) fn as_str(&self) -> &str {
        self.authority.as_str()
    }

    /// The address that this name was resolved to.
    pub(crate) fn at(&self, address: SocketAddr) -> Address {
        Address::Tcp { at: address.to_string().into(), name: self.clone() }
    }
}

impl FromStr for Target {
    type Err = String;

    /// Says what is wrong with a target, for a person to read.
    fn from_str(text: &str) -> Result<Self, String> {
        let place = if let Some(addresses) = text.strip_prefix("static:///") {
            Place::Fixed(parse_addresses(addresses)?)
        } else if let Some(name) = text.strip_prefix("dns:///") {
            Place::Dns(name.parse()?)
        } else if let Some(path) = text.strip_prefix("unix://").filter(|it| it.starts_with('/')) {
            Place::Fixed([parse_socket(path)?].into())
        } else {
            return Err("its scheme is none of static:///, dns:/// and unix:///".to_owned());
        };
        Ok(Self { text: text.into(), place })
    }
}

fn parse_addresses(text: &str) -> Result<Arc<[Address]>, String> {
    let mut addresses = Vec::new();
    for text in text.split(',') {
        let address = Address::Tcp { at: text.into(), name: text.parse()? };
        if addresses.contains(&address) {
            return Err(format!("{text:?} is named twice"));
        }
        addresses.push(address);
    }
    Ok(addresses.into())
}

fn parse_socket(path: &str) -> Result<Address, String> {
    if path.ends_with('/') {
        return Err(format!("{path:?} is a folder, not a socket"));
    }
    unix::net::SocketAddr::from_pathname(path)
        .map_err(|error| format!("{path:?} cannot be the path of a socket: {error}"))?;
    Ok(Address::Unix(Path::new(path).into()))
}

impl FromStr for Name {
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
        formatter.write_str(&self.text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { at, .. } => formatter.write_str(at),
            Self::Unix(path) => path.display().fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(text: &str) -> Vec<Address> {
        match text.parse::<Target>().unwrap().place {
            Place::Fixed(addresses) => addresses.to_vec(),
            Place::Dns(name) => vec![name.at("10.0.0.1:7".parse().unwrap())],
        }
    }

    #[test]
    fn a_target_is_a_list_or_a_name_or_a_socket() {
        for (text, expected) in [
            ("static:///127.0.0.1:1", &["127.0.0.1:1"][..]),
            ("static:///[::1]:1,localhost:2,a.b.svc:3", &["[::1]:1", "localhost:2", "a.b.svc:3"]),
            ("dns:///catalog.shop.svc:50051", &["10.0.0.1:7"]),
            ("unix:///run/shop/catalog,1.sock", &["/run/shop/catalog,1.sock"]),
        ] {
            let addresses: Vec<_> = addresses(text).iter().map(ToString::to_string).collect();
            assert_eq!(addresses, expected, "{text}");
        }
    }

    #[test]
    fn a_peer_is_called_what_the_target_calls_it() {
        for (text, authority, server_name) in [
            ("static:///[::1]:1", "[::1]:1", "::1"),
            ("dns:///catalog.shop.svc:50051", "catalog.shop.svc:50051", "catalog.shop.svc"),
            ("unix:///run/catalog.sock", "localhost", "127.0.0.1"),
        ] {
            let address = &addresses(text)[0];
            assert_eq!(address.authority(), authority, "{text}");
            assert_eq!(address.server_name().to_str(), server_name, "{text}");
        }
    }

    #[test]
    fn a_target_of_another_form_is_refused() {
        let long = format!("unix:///{}", "a".repeat(200));
        for (text, expected) in [
            ("", "its scheme is none of static:///, dns:/// and unix:///"),
            ("127.0.0.1:1", "its scheme is none of static:///, dns:/// and unix:///"),
            ("https://localhost:1", "its scheme is none of static:///, dns:/// and unix:///"),
            ("static://localhost:1", "its scheme is none of static:///, dns:/// and unix:///"),
            ("unix://a.sock", "its scheme is none of static:///, dns:/// and unix:///"),
            ("static:///", r#""" is not an address"#),
            ("static:///localhost", r#""localhost" has no port"#),
            ("static:///localhost:0", r#""localhost:0" has no port"#),
            ("static:///a:1,,b:2", r#""" is not an address"#),
            ("static:///a:1,b:2,a:1", r#""a:1" is named twice"#),
            ("static:///me@a:1", r#""me@a:1" is not an address"#),
            ("static:///a:1/b", r#""a:1/b" is not an address"#),
            ("dns:///", r#""" is not an address"#),
            ("dns:///localhost", r#""localhost" has no port"#),
            ("dns:///a:1,b:2", r#""a:1,b:2" is not an address"#),
            ("unix:///", r#""/" is a folder, not a socket"#),
            ("unix:///run/", r#""/run/" is a folder, not a socket"#),
            ("unix:///a\0b", r#""/a\0b" cannot be the path of a socket: "#),
            (&long, "cannot be the path of a socket: "),
        ] {
            let problem = text.parse::<Target>().unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn a_target_is_written_as_it_was_read(
            text in r"(static|dns):///([a-z0-9.-]{1,9}|\[[0-9a-f:]{2,9}\]):[0-9]{1,6}(,[a-z.]{1,5}:[1-9])?|(static|dns|unix):///\PC*|\PC*",
        ) {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string(), text);
            }
        }

        #[test]
        fn the_addresses_of_a_list_are_written_as_they_were_read(
            text in r"([a-z0-9.-]{1,9}|\[[0-9a-f:]{2,9}\]):[0-9]{1,6}(,[a-z.]{1,5}:[1-9])?",
        ) {
            if let Ok(addresses) = parse_addresses(&text) {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                prop_assert_eq!(addresses.join(","), text);
            }
        }
    }
}
