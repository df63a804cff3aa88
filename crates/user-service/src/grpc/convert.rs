//! From the contract to the domain, where every field is checked, and back.

pub(super) mod accounts;
pub(super) mod auth;
pub(super) mod users;
