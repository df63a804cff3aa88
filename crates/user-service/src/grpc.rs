//! The RPCs: convert, call, convert.

mod accounts;
mod auth;
mod convert;
mod users;

use service_runtime::{Caller, Clock, Identifiers};
use tonic::{Request, Status};
use uuid::Uuid;

use crate::{access::Access, error::Error, user};

/// Serves the RPCs from a store.
#[derive(Clone, Debug)]
pub struct Service<S> {
    store: S,
    access: Access<S>,
    clock: Clock,
    identifiers: Identifiers,
}

impl<S> Service<S> {
    /// Serves from `store`, with these sources of time and identifiers.
    pub fn new(store: S, access: Access<S>, clock: Clock, identifiers: Identifiers) -> Self {
        Self { store, access, clock, identifiers }
    }
}

/// Who sent a request.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    Caller::of(request.extensions()).cloned()
}

/// Refuses a caller who names a user for whom he may not act.
fn admit(caller: &Caller, user_id: Uuid) -> Result<(), Error> {
    Ok(user::admit(caller.actor(), user_id)?)
}
