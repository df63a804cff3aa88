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

/// The form in which texts are compared, without regard to case: what differs in its
/// capitals alone, `STRASSE` and `straße` too, folds to the same, wherever in a word.
pub fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
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
    /// How often the product was written, from 1. Its stock does not count.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last written.
    pub update_time: Timestamp,
    /// When it was deleted.
    pub delete_time: Option<Timestamp>,
}

/// What is to change of a label. What is none stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Another SKU.
    pub sku: Option<Sku>,
    /// Another name.
    pub name: Option<String>,
    /// Another description.
    pub description: Option<String>,
    /// Another shelf.
    pub category: Option<String>,
    /// Another price.
    pub price: Option<Money>,
}

/// A change of a product, and what it depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// What the product must still be, if that matters.
    pub etag: Option<String>,
    /// What changes.
    pub changes: Changes,
}

/// The product is not as the caller last saw it. Nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("product {0} was changed since it was read; read it again and decide anew")]
pub struct EtagStale(pub Uuid);

impl Product {
    /// A product that is put on the shelf.
    pub fn new(id: Uuid, draft: Draft, now: Timestamp) -> Self {
        let Draft { label, initial_quantity: available } = draft;
        let (create_time, update_time) = (now, now);
        Self { id, label, available, revision: 1, create_time, update_time, delete_time: None }
    }

    /// What a writer must have seen to overwrite it (<https://google.aip.dev/154>).
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.revision)
    }

    /// The product after an update; the same if it changes nothing.
    pub fn update(self, update: Update, now: Timestamp) -> Result<Self, EtagStale> {
        self.match_etag(update.etag.as_deref())?;
        let Changes { sku, name, description, category, price } = update.changes;
        let old = self.label.clone();
        let label = Label {
            sku: sku.unwrap_or(old.sku),
            name: name.unwrap_or(old.name),
            description: description.unwrap_or(old.description),
            category: category.unwrap_or(old.category),
            price: price.unwrap_or(old.price),
        };
        Ok(self.relabel(label, now))
    }

    /// The product under another label; the same if the label is.
    #[must_use]
    pub fn relabel(self, label: Label, now: Timestamp) -> Self {
        if label == self.label {
            return self;
        }
        Self { label, revision: self.revision + 1, update_time: now, ..self }
    }

    /// The product once deleted. One that was deleted before is the answer again,
    /// whatever the etag.
    pub fn delete(self, etag: Option<&str>, now: Timestamp) -> Result<Self, EtagStale> {
        if self.delete_time.is_some() {
            return Ok(self);
        }
        self.match_etag(etag)?;
        let revision = self.revision + 1;
        Ok(Self { revision, update_time: now, delete_time: Some(now), ..self })
    }

    fn match_etag(&self, etag: Option<&str>) -> Result<(), EtagStale> {
        if etag.is_none_or(|etag| etag == self.etag()) { Ok(()) } else { Err(EtagStale(self.id)) }
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
    use proptest::prelude::*;

    #[test]
    fn only_capitals_digits_and_hyphens_make_a_sku() {
        assert!(Sku::try_from("ROPE-12".to_owned()).is_ok());
        for wrong in ["", "rope", "ROPE 12", "ROPÉ", &"A".repeat(41)] {
            assert_eq!(Sku::try_from(wrong.to_owned()), Err(InvalidSku), "{wrong}");
        }
    }

    #[test]
    fn texts_that_differ_in_case_fold_to_the_same() {
        for (one, other) in
            [("Rope", "rOPE"), ("STRASSE", "straße"), ("ΟΔΟΣ", "οδος"), ("ÖLZEUG", "ölzeug")]
        {
            assert_eq!(folded(one), folded(other));
        }
        assert!(folded("ΟΔΟΣΤΡΩΤΗΡΑΣ").contains(&folded("οδος")));
        assert_ne!(folded("Rope"), folded("Röpe"));
    }

    const NOW: Timestamp = Timestamp::from_micros(2);

    fn rope() -> Product {
        let label = Label {
            sku: Sku::on_record("ROPE".to_owned()),
            name: "Rope".to_owned(),
            description: String::new(),
            category: "Rope".to_owned(),
            price: Money { currency: "EUR".parse().unwrap(), minor_units: 250 },
        };
        let draft = Draft { label, initial_quantity: 10 };
        Product::new(Uuid::from_u128(7), draft, Timestamp::from_micros(1))
    }

    #[test]
    fn an_update_changes_what_it_names_and_the_etag_if_it_changes_anything() {
        let update = |name: &str| {
            let changes = Changes { name: Some(name.to_owned()), ..Changes::default() };
            Update { changes, etag: None }
        };
        let renamed = rope().update(update("Hawser"), NOW).unwrap();
        let label = Label { name: "Hawser".to_owned(), ..rope().label };
        assert_eq!(renamed, Product { label, revision: 2, update_time: NOW, ..rope() });
        assert_eq!(rope().update(update("Rope"), NOW), Ok(rope()));

        let stale = Update { etag: Some(rope().etag()), ..update("Rope") };
        assert_eq!(renamed.update(stale, NOW), Err(EtagStale(rope().id)));
    }

    #[test]
    fn a_deletion_is_answered_again_whatever_its_etag() {
        assert_eq!(rope().delete(Some("\"2\""), NOW), Err(EtagStale(rope().id)));
        let deleted = rope().delete(Some("\"1\""), NOW).unwrap();
        assert_eq!((deleted.delete_time, deleted.revision), (Some(NOW), 2));
        let later = Timestamp::from_micros(3);
        assert_eq!(deleted.clone().delete(Some("\"1\""), later), Ok(deleted));
    }

    proptest! {
        #[test]
        fn a_sku_is_written_as_it_was_read(text in r"[A-Z0-9-]{0,42}|\PC{0,42}") {
            let fits = |c: char| matches!(c, 'A'..='Z' | '0'..='9' | '-');
            let fits = (1..=40).contains(&text.len()) && text.chars().all(fits);
            match Sku::try_from(text.clone()) {
                Ok(sku) => prop_assert_eq!(sku.as_str(), text),
                Err(InvalidSku) => prop_assert!(!fits),
            }
        }
    }
}
