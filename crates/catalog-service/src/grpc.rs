//! The RPCs: convert, call, convert.

mod convert;
mod products;
mod stock;

use service_runtime::{Clock, Identifiers};

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
