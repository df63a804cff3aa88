//! What every server of the suite needs.

mod money;
mod time;

pub use money::{Currency, InvalidCurrency, Money};
pub use time::{Clock, Timestamp};
