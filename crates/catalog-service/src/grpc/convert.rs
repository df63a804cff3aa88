//! From the contract to the domain, where every field is checked, and back.

pub(super) mod products;
pub(super) mod stock;
