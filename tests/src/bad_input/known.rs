//! What there is in the shop, learned from what is sent and answered.

use std::collections::BTreeMap;

use prost_reflect::{DynamicMessage, FieldDescriptor, Value};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

/// How many values of a name are remembered.
const REMEMBERED: usize = 64;

/// What is known of a shop.
#[derive(Default)]
pub(super) struct Known {
    /// Texts by the name of what they are.
    texts: BTreeMap<String, Vec<String>>,
    sessions: Vec<Session>,
}

/// A user who has signed in.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) user_id: String,
    pub(super) access_token: String,
}

impl Known {
    /// Remembers every text in a message.
    pub(super) fn learn(&mut self, message: &DynamicMessage, random: &mut StdRng) {
        let text = |name| Some(message.get_field_by_name(name)?.as_str()?.to_owned());
        if let (Some(user_id), Some(access_token)) = (text("user_id"), text("access_token")) {
            self.keep_session(Session { user_id, access_token }, random);
        }
        for (field, value) in message.fields() {
            self.learn_value(&field, value, random);
        }
    }

    fn learn_value(&mut self, field: &FieldDescriptor, value: &Value, random: &mut StdRng) {
        match value {
            // What was spoiled is no use.
            Value::String(text) if (1..=2_000).contains(&text.len()) => {
                self.keep(&name(field), text.clone(), random);
            }
            Value::Message(message) => self.learn(message, random),
            Value::List(values) => {
                for value in values {
                    self.learn_value(field, value, random);
                }
            }
            _ => {}
        }
    }

    /// Remembers a text, in place of an older one if there are many.
    pub(super) fn keep(&mut self, name: &str, text: String, random: &mut StdRng) {
        let texts = self.texts.entry(name.to_owned()).or_default();
        if !texts.contains(&text) {
            keep(texts, text, random);
        }
    }

    /// Remembers a session, as [`keep`](Self::keep) does a text.
    pub(super) fn keep_session(&mut self, session: Session, random: &mut StdRng) {
        keep(&mut self.sessions, session, random);
    }

    /// Somebody to call for.
    pub(super) fn session(&self, random: &mut StdRng) -> Option<&Session> {
        self.sessions.choose(random)
    }

    /// A text that fits a field.
    pub(super) fn fitting(&self, field: &FieldDescriptor, random: &mut StdRng) -> Option<String> {
        let name = name(field);
        // The `id` of a GetProductRequest is that of a product.
        let longest = || {
            let inside = self.texts.keys().filter(|key| name.contains(key.as_str()));
            inside.max_by_key(|key| key.len())
        };
        let key = if is_id(field) { longest()? } else { &name };
        self.recall(key, random)
    }

    fn recall(&self, name: &str, random: &mut StdRng) -> Option<String> {
        self.texts.get(name)?.choose(random).cloned()
    }

    /// Any text, which fits nothing in particular.
    pub(super) fn anything(&self, random: &mut StdRng) -> Option<String> {
        let names: Vec<_> = self.texts.keys().collect();
        self.recall(names.choose(random)?, random)
    }
}

fn keep<T>(values: &mut Vec<T>, value: T, random: &mut StdRng) {
    if values.len() == REMEMBERED {
        values.swap_remove(random.random_range(..REMEMBERED));
    }
    values.push(value);
}

/// Whether a field is the identifier of what its message is about.
fn is_id(field: &FieldDescriptor) -> bool {
    matches!(field.name(), "id" | "ids" | "after_id")
}

/// What a field holds: the `product_id` of any message is the `id` of a Product, and a
/// `next_page_token` is what the `page_token` of the same RPC takes.
pub(super) fn name(field: &FieldDescriptor) -> String {
    let message = field.parent_message().name();
    let message = message.trim_end_matches("Request").trim_end_matches("Response").to_lowercase();
    match field.name() {
        _ if is_id(field) => message,
        "page_token" | "next_page_token" => format!("{message} page_token"),
        name => name.strip_suffix("_id").map_or(name.to_owned(), |noun| noun.replace('_', "")),
    }
}
