//! Where the services of a suite are, as a file that other programs read.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{clients::Targets, service::Service};

/// The file, in the directory of the suite. It is there while the services are.
const FILE: &str = "endpoints.json";

/// The file of the suite that was there before.
const LAST_FILE: &str = "endpoints.last.json";

const MODE: u32 = 0o644;

/// Where one service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Serves RPCs over mutual TLS.
    pub grpc: SocketAddr,
    /// Serves health alone, in plaintext.
    pub health: SocketAddr,
}

/// Where the three services are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Endpoints {
    /// user-service.
    pub user_service: Endpoint,
    /// catalog-service.
    pub catalog_service: Endpoint,
    /// purchase-service.
    pub purchase_service: Endpoint,
}

impl Endpoints {
    /// Where a service is.
    pub fn of(&self, service: Service) -> Endpoint {
        let Self { user_service, catalog_service, purchase_service } = *self;
        match service {
            Service::User => user_service,
            Service::Catalog => catalog_service,
            Service::Purchase => purchase_service,
        }
    }

    /// Where the services are, as [`client::Channel::to`] takes it.
    pub fn targets(&self) -> Targets {
        let target = |service| super::target(self.of(service).grpc);
        Targets {
            user_service: target(Service::User),
            catalog_service: target(Service::Catalog),
            purchase_service: target(Service::Purchase),
        }
    }

    /// Reads where the services of a directory are. An error of the kind `NotFound` says
    /// that there are none.
    pub fn read(directory: &Path) -> io::Result<Self> {
        read(&directory.join(FILE))
    }

    /// Reads where the services of a directory were before they were withdrawn.
    pub(crate) fn read_last(directory: &Path) -> io::Result<Self> {
        read(&directory.join(LAST_FILE))
    }

    /// Tells where the services are, all at once.
    pub(crate) fn publish(&self, directory: &Path) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(directory)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.persist(directory.join(FILE))?;
        Ok(())
    }

    /// Takes the file away, so that whoever waits for it waits for services, and
    /// remembers what it said.
    pub(crate) fn withdraw(directory: &Path) -> io::Result<()> {
        match fs::rename(directory.join(FILE), directory.join(LAST_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

fn read(path: &Path) -> io::Result<Endpoints> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tempfile::TempDir;

    #[test]
    fn endpoints_are_found_by_the_name_of_their_service_until_they_are_withdrawn() {
        let directory = TempDir::new().unwrap();
        let directory = directory.path();
        let endpoint = |port| {
            let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
            Endpoint { grpc: address(port), health: address(port + 1) }
        };
        let endpoints = Endpoints {
            user_service: endpoint(1),
            catalog_service: endpoint(3),
            purchase_service: endpoint(5),
        };
        endpoints.publish(directory).unwrap();
        let text = fs::read_to_string(directory.join("endpoints.json")).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            json!({
                "user-service": { "grpc": "127.0.0.1:1", "health": "127.0.0.1:2" },
                "catalog-service": { "grpc": "127.0.0.1:3", "health": "127.0.0.1:4" },
                "purchase-service": { "grpc": "127.0.0.1:5", "health": "127.0.0.1:6" },
            })
        );
        assert_eq!(Endpoints::read(directory).unwrap(), endpoints);

        Endpoints::withdraw(directory).unwrap();
        Endpoints::withdraw(directory).unwrap();
        assert_eq!(Endpoints::read(directory).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(Endpoints::read_last(directory).unwrap(), endpoints);
    }
}
