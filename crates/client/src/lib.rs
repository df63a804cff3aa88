//! What every caller of the suite needs: one [`Channel`] per peer that finds the
//! peer's endpoints and spreads its calls over them, repeats what may be repeated,
//! carries the caller's identity and demands the peer's, and keeps every call within
//! its deadline and its trace, and on behalf of its end user.
//!
//! ```no_run
//! # fn example(identity: client::Identity) -> Result<(), client::Error> {
//! let channel = client::Channel::to("static:///127.0.0.1:50051")
//!     .identity(identity)
//!     .peer("spiffe://chandlery.local/ns/chandlery/sa/catalog-service")
//!     .build()?;
//! # Ok(())
//! # }
//! ```
//!
//! A generated client takes the channel as it is. Its calls end with the status
//! of the peer, with `DEADLINE_EXCEEDED` when the deadline passes, or with
//! `UNAVAILABLE` when the peer cannot be reached, is not who it should be, or the
//! connection is lost; in the last case the call may have had its effect.
//!
//! A call that no peer has begun with is sent again whatever it is. Any other is
//! repeated only if the contract says that it is idempotent, and only as often as a
//! budget allows.

mod attempt;
mod balance;
mod call;
mod channel;
mod connection;
pub mod deadline;
mod discovery;
pub mod end_user;
mod endpoint;
mod endpoints;
pub mod identity;
mod keeper;
mod random;
mod replay;
mod response;
mod retry;
mod snapshot;
pub mod spiffe;
mod target;

pub use balance::Balance;
pub use channel::{Builder, Channel, Error};
pub use connection::{CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW};
pub use deadline::Deadline;
pub use identity::{Identity, IdentityFiles};
pub use response::ResponseBody;
pub use snapshot::{EndpointSnapshot, EndpointState, Snapshot};
pub use spiffe::SpiffeId;
pub use target::Target;
