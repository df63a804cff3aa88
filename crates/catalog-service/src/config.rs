//! The variables of this service, beside those that all share.

use std::path::PathBuf;

use service_runtime::{Reported, Variables};

/// The configuration of catalog-service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_FILE`: the SQLite file that holds products and stock.
    pub database_file: PathBuf,
}

impl Config {
    /// Reads the variables.
    pub fn parse(variables: &mut Variables) -> Result<Self, Reported> {
        let database_file = variables
            .required("DATABASE_FILE", "the path of a SQLite file, which is made if there is none");
        Ok(Self { database_file: database_file? })
    }
}
