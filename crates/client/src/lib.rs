//! What every caller of the suite needs: one [`Channel`] per peer that carries
//! the caller's identity, demands the peer's, and keeps every call within its
//! deadline and its trace, and on behalf of its end user.
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

mod call;
mod channel;
mod connect;
pub mod deadline;
pub mod end_user;
pub mod identity;
pub mod spiffe;

pub use channel::{Builder, Channel, Error};
pub use connect::Target;
pub use deadline::Deadline;
pub use identity::{Identity, IdentityFiles};
pub use spiffe::SpiffeId;
