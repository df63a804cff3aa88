//! What a product is. How much there is of it is [`stock`](crate::stock)'s matter.

use serde::{Deserialize, Serialize};
use service_runtime::{Money, Timestamp};
use uuid::Uuid;

/// The stock keeping unit of a product: 1 to 40 capital letters, digits and
/// hyphens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sku(String);

impl Sku {
    /// A SKU as it is on record.
    pub(crate) fn on_record(text: String) -> Self {
        Self(text)
    }

    /// The SKU as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that is no SKU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a SKU; send 1 to 40 capital letters, digits and hyphens")]
pub struct InvalidSku;

impl TryFrom<String> for Sku {
    type Error = InvalidSku;

    fn try_from(text: String) -> Result<Self, InvalidSku> {
        let fits = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'-';
        match text.len() {
            1..=40 if text.bytes().all(fits) => Ok(Self(text)),
            _ => Err(InvalidSku),
        }
    }
}

/// What the shop says of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// What identifies it on the shelf.
    pub sku: Sku,
    /// Its name.
    pub name: String,
    /// What a buyer wants to know.
    pub description: String,
    /// The shelf it stands on.
    pub category: String,
    /// The price of one piece.
    pub price: Money,
}

/// A product that is to be put on the shelf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Draft {
    /// What the shop says of it.
    pub label: Label,
    /// How many pieces there are at the start.
    pub initial_quantity: i64,
}

/// A product on the shelf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// Its identifier.
    pub id: Uuid,
    /// What the shop says of it.
    pub label: Label,
    /// Pieces that can be bought now.
    pub available: i64,
    /// How often the label was written, from 1.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When its label was last written.
    pub update_time: Timestamp,
}

impl Product {
    /// What a writer must have seen to overwrite it (<https://google.aip.dev/154>).
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.revision)
    }
}

/// What an import did to one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is new.
    Created,
    /// It had another label.
    Updated,
    /// It was there, just so.
    Unchanged,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_capitals_digits_and_hyphens_make_a_sku() {
        assert!(Sku::try_from("ROPE-12".to_owned()).is_ok());
        for wrong in ["", "rope", "ROPE 12", "ROPÉ", &"A".repeat(41)] {
            assert_eq!(Sku::try_from(wrong.to_owned()), Err(InvalidSku), "{wrong}");
        }
    }
}
