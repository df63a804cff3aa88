//! Who calls from the command line, and where the services are that he calls.

use std::{ffi::OsStr, io, path::PathBuf};

use clap::{
    Arg, Command,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
};
use client::Identity;

use crate::{certs, dev, suite::Endpoints};

/// Who calls, by his certificate.
#[derive(Debug, clap::Args)]
pub(crate) struct Caller {
    /// The folder in which `chandlery dev` keeps endpoints.json and certs
    #[arg(long, value_name = "DIR", default_value = dev::DATA_DIR)]
    data_dir: PathBuf,

    /// The folder of the certificates, as `chandlery certs` makes it; else that of
    /// the data folder
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,

    /// The workload to call as, by its certificate
    #[arg(
        long = "as",
        value_name = "WORKLOAD",
        default_value = certs::WORKLOADS[0],
        value_parser = WorkloadParser,
        hide_possible_values = true
    )]
    workload: String,
}

/// Why nobody can call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not known where the services are.
    #[error(
        "endpoints.json in {} cannot be read: {cause}; start the suite with `chandlery dev`, or \
         give the target of the service and --certs",
        data_dir.display()
    )]
    Endpoints {
        /// The folder that should hold the file.
        data_dir: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// The certificate cannot be used.
    #[error("{0}; --certs and --as say which certificate is taken")]
    Identity(#[from] client::identity::Error),
}

impl Caller {
    /// The identity to call as.
    pub(crate) fn identity(&self) -> Result<Identity, Error> {
        let certs = self.certs.clone().unwrap_or_else(|| self.data_dir.join("certs"));
        Ok(Identity::load(&certs::identity_files(&certs, &self.workload))?)
    }

    /// Where the services of the data folder are.
    pub(crate) fn endpoints(&self) -> Result<Endpoints, Error> {
        Endpoints::read(&self.data_dir)
            .map_err(|cause| Error::Endpoints { data_dir: self.data_dir.clone(), cause })
    }
}

/// Takes the name of any workload, and offers those of the suite for completion.
#[derive(Clone, Debug)]
struct WorkloadParser;

impl TypedValueParser for WorkloadParser {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        name: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, name)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(certs::WORKLOADS.into_iter().map(PossibleValue::new)))
    }
}
