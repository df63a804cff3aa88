//! The RPCs: convert, call, convert.

mod convert;
mod products;
mod stock;

use service_runtime::{Caller, Clock, Identifiers};
use tonic::{Request, Status};

/// Serves the RPCs from a store.
#[derive(Clone, Debug)]
pub struct Service<S> {
    store: S,
    clock: Clock,
    identifiers: Identifiers,
}

impl<S> Service<S> {
    /// Serves from `store`, with these sources of time and identifiers.
    pub fn new(store: S, clock: Clock, identifiers: Identifiers) -> Self {
        Self { store, clock, identifiers }
    }
}

/// Who sent a request.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    Caller::of(request.extensions()).cloned()
}
