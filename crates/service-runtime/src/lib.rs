//! What every server of the suite needs, once: configuration, telemetry, mutual
//! TLS, authorization by the contract, deadlines, health, drain; and for its
//! handlers the reading of requests, pages, rich errors and the embedded database.
//!
//! A service is started by [`main`], which reads the environment, and served by
//! [`Server::serve`], which tests call as well.

pub mod access_token;
mod call;
mod caller;
mod config;
mod connection;
mod error;
mod fields;
mod framing;
mod health;
mod money;
mod page;
mod program;
mod request;
mod server;
pub mod sqlite;
mod sweep;
mod telemetry;
mod time;

pub use caller::{Actor, Caller, EndUser, NotOwner, Role};
pub use config::{Config, LogFormat, PositiveSeconds, Reported, Seconds, Variables};
pub use error::{DOMAIN, exhausted, internal, reason, refusal, refusal_about, unavailable};
pub use fields::{Fields, has_direction_marks, to_proto_money, to_proto_role, to_proto_timestamp};
pub use money::{Currency, InvalidCurrency, Money};
pub use page::{Page, PageTokens, Paged, ResumeTokens};
pub use program::{block_on, main};
pub use request::{RequestIdReused, RequestKey};
pub use server::{Server, Services, StartError};
pub use sweep::sweep;
/// Trace context that outlives a request, for work that goes on after it.
pub mod trace {
    pub use crate::telemetry::{continue_from, current};
}
pub use time::{Clock, Identifiers, Timestamp};
