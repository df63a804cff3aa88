//! The variables of this service, beside those that all share.

use service_runtime::{Reported, Variables, sqlite::DatabaseFile};

/// The configuration of catalog-service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_FILE`: the SQLite file that holds products and stock.
    pub database_file: DatabaseFile,
}

impl Config {
    /// Reads the variables.
    pub fn parse(variables: &mut Variables) -> Result<Self, Reported> {
        let database_file = variables.required("DATABASE_FILE", DatabaseFile::FORM);
        Ok(Self { database_file: database_file? })
    }
}
