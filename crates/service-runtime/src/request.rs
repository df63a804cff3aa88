//! What makes a request the same request when it is sent again
//! (<https://google.aip.dev/155>).

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use uuid::Uuid;

use crate::Caller;

/// The key under which the effect of a request is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// Who sent it: [`Caller::principal`].
    pub principal: String,
    /// What the sender called it.
    pub request_id: Uuid,
    /// A digest of the RPC and all parameters, to tell a repeat from another request
    /// under the same identifier.
    pub fingerprint: [u8; 32],
}

impl RequestKey {
    /// The key of a request of `rpc`. The parameters are those that the domain
    /// sees: what the contract ignores makes no other request.
    pub fn new(caller: &Caller, request_id: Uuid, rpc: &str, parameters: &impl Serialize) -> Self {
        // Plain data always has a JSON form.
        let parameters = serde_json::to_vec(parameters).unwrap_or_default();
        let mut fingerprint = [0; 32];
        let digest = digest(&SHA256, &[rpc.as_bytes(), b"\0", &parameters].concat());
        fingerprint.copy_from_slice(digest.as_ref());
        Self { principal: caller.principal(), request_id, fingerprint }
    }

    /// Refuses the request if another one is on record under its key.
    pub fn match_fingerprint(&self, recorded: &[u8]) -> Result<(), RequestIdReused> {
        if recorded == self.fingerprint { Ok(()) } else { Err(RequestIdReused) }
    }
}

/// Another request was sent under the same key before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this request_id was sent before with other parameters; make up a new one")]
pub struct RequestIdReused;
