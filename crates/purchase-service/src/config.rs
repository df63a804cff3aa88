//! The variables of this service, beside those that all share.

use std::time::Duration;

use client::Target;
use service_runtime::{PositiveSeconds, Reported, Variables, sqlite::DatabaseFile};

/// The configuration of purchase-service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_FILE`: the SQLite file that holds purchases and their events.
    pub database_file: DatabaseFile,
    /// `CATALOG_SERVICE_TARGET`: where catalog-service is.
    pub catalog_service_target: Target,
    /// `USER_SERVICE_TARGET`: where user-service is.
    pub user_service_target: Target,
    /// `PURCHASE_TIMEOUT_SECONDS`: how long a purchase may stay undecided.
    pub purchase_timeout: Duration,
}

impl Config {
    /// Reads the variables.
    pub fn parse(variables: &mut Variables) -> Result<Self, Reported> {
        const FORM: &str = "a target, for example static:///127.0.0.1:50051";
        let database_file = variables.required("DATABASE_FILE", DatabaseFile::FORM);
        let catalog_service_target = variables.required("CATALOG_SERVICE_TARGET", FORM);
        let user_service_target = variables.required("USER_SERVICE_TARGET", FORM);
        let purchase_timeout = variables.optional(
            "PURCHASE_TIMEOUT_SECONDS",
            "how long a purchase may stay undecided before it fails, in whole seconds from 1",
            "20",
        );
        Ok(Self {
            database_file: database_file?,
            catalog_service_target: catalog_service_target?,
            user_service_target: user_service_target?,
            purchase_timeout: purchase_timeout.map(|PositiveSeconds(duration)| duration)?,
        })
    }
}
