//! The RPCs: convert, call, convert.

mod accounts;
mod auth;
mod convert;
mod users;

use service_runtime::{Caller, Timestamp};
use uuid::Uuid;

use crate::{access::Access, error::Error};

/// Serves the RPCs from a store.
#[derive(Clone, Debug)]
pub struct Service<S> {
    access: Access<S>,
}

impl<S> Service<S> {
    /// Serves from the store of `access`, with its sources of time and identifiers.
    pub fn new(access: Access<S>) -> Self {
        Self { access }
    }

    fn store(&self) -> &S {
        &self.access.store
    }

    fn now(&self) -> Timestamp {
        self.access.clock.now()
    }

    fn new_id(&self) -> Uuid {
        self.access.identifiers.next()
    }
}

/// Refuses a caller who names a user for whom he may not act.
fn admit(caller: &Caller, user_id: Uuid) -> Result<(), Error> {
    Ok(caller.actor().admit(user_id)?)
}
