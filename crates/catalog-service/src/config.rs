//! The variables of this service, beside those that all share.

use client::Target;
use service_runtime::{Reported, Variables, sqlite::DatabaseFile};

/// The configuration of catalog-service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_FILE`: the SQLite file that holds products and stock.
    pub database_file: DatabaseFile,
    /// `USER_SERVICE_TARGET`: where user-service is, which publishes the keys of
    /// tokens.
    pub user_service_target: Target,
}

impl Config {
    /// Reads the variables.
    pub fn parse(variables: &mut Variables) -> Result<Self, Reported> {
        const FORM: &str = "a target, for example static:///127.0.0.1:50051";
        let database_file = variables.required("DATABASE_FILE", DatabaseFile::FORM);
        let user_service_target = variables.required("USER_SERVICE_TARGET", FORM);
        Ok(Self { database_file: database_file?, user_service_target: user_service_target? })
    }
}
