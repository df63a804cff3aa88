//! Messages that could be meant: every field is set, and names what there is.

use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    Value,
};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use service_runtime::Timestamp;
use uuid::Builder;

use super::known::{self, Known};

/// What everybody signs in with.
pub(super) const PASSWORD: &str = "correct horse battery staple";

/// Fields that are more often empty than not.
const OPTIONAL: [&str; 6] =
    ["etag", "page_token", "after_id", "resume_token", "filter", "new_password"];

/// What callers give names to themselves.
const MADE_UP: [&str; 2] = ["request_id", "cart_id"];

const FILTERS: [&str; 4] =
    [r#"category = "Anchors""#, "name : rope", r#"sku = "ROPE-12""#, "name:anchor AND category=x"];

/// Makes messages.
pub(super) struct Messages<'a> {
    pub(super) known: &'a Known,
    /// Who calls, if it is an end user, whose own things he asks for mostly.
    pub(super) user_id: Option<&'a str>,
    pub(super) now: Timestamp,
    pub(super) random: &'a mut StdRng,
}

impl Messages<'_> {
    /// The messages of a call, of which a stream has several.
    pub(super) fn call(&mut self, method: &MethodDescriptor) -> Vec<DynamicMessage> {
        let count = if method.is_client_streaming() { self.random.random_range(1..=4) } else { 1 };
        (0..count).map(|position| self.message(&method.input(), position)).collect()
    }

    fn message(&mut self, descriptor: &MessageDescriptor, position: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        if descriptor.full_name() == "google.protobuf.Timestamp" {
            let seconds = self.now.as_micros() / 1_000_000 + self.random.random_range(1..=60);
            message.set_field_by_name("seconds", Value::I64(seconds));
            return message;
        }
        for field in descriptor.fields().filter(|it| it.containing_oneof().is_none()) {
            message.set_field(&field, self.value(&field));
        }
        for oneof in descriptor.oneofs() {
            let fields: Vec<_> = oneof.fields().collect();
            // A conversation begins with its first step.
            let chosen = match position {
                0 if self.random.random_bool(0.9) => &fields[0],
                0 => fields.choose(self.random).unwrap(),
                _ => fields[1..].choose(self.random).unwrap_or(&fields[0]),
            };
            message.set_field(chosen, self.value(chosen));
        }
        message
    }

    /// A value that fits a field.
    fn value(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map() {
            return Value::default_value_for_field(field);
        }
        if let Kind::Message(descriptor) = field.kind()
            && descriptor.full_name() == "google.protobuf.FieldMask"
        {
            return Value::Message(self.mask(&descriptor, field.parent_message()));
        }
        if field.is_list() {
            let count = self.random.random_range(1..=3);
            return Value::List((0..count).map(|_| self.single(field)).collect());
        }
        self.single(field)
    }

    /// A value that fits a field, or one element of it.
    fn single(&mut self, field: &FieldDescriptor) -> Value {
        // Little enough that nothing runs out.
        let number = self.random.random_range(1..=5);
        match field.kind() {
            Kind::String => Value::String(self.text(field)),
            Kind::Message(descriptor) => Value::Message(self.message(&descriptor, 0)),
            Kind::Enum(descriptor) => Value::EnumNumber(self.variant(&descriptor)),
            Kind::Bool => Value::Bool(self.random.random()),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number.into()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(number.unsigned_abs()),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(number.unsigned_abs().into()),
            Kind::Float | Kind::Double | Kind::Bytes => Value::default_value_for_field(field),
        }
    }

    /// A mask of everything, or of a field of what is to be updated.
    fn mask(&mut self, mask: &MessageDescriptor, request: &MessageDescriptor) -> DynamicMessage {
        let mut message = DynamicMessage::new(mask.clone());
        let fields: Vec<_> = request
            .fields()
            .filter_map(|field| field.kind().as_message().cloned())
            .flat_map(|resource| resource.fields().collect::<Vec<_>>())
            .filter(|field| field.parent_message() != mask)
            .collect();
        let all = self.random.random_bool(0.5);
        let field = fields.choose(self.random).filter(|_| !all);
        let path = field.map_or("*", FieldDescriptor::name).to_owned();
        message.set_field_by_name("paths", Value::List(vec![Value::String(path)]));
        message
    }

    fn variant(&mut self, descriptor: &EnumDescriptor) -> i32 {
        let values: Vec<_> = descriptor.values().collect();
        values.choose(self.random).unwrap().number()
    }

    fn text(&mut self, field: &FieldDescriptor) -> String {
        let name = field.name();
        let names_a_thing = name == "id" || name == "ids" || name.ends_with("_id");
        let is_of_request = field.parent_message().name().ends_with("Request");
        let likelihood = match name {
            _ if MADE_UP.contains(&name) => 0.1,
            _ if OPTIONAL.contains(&name) => 0.3,
            _ if names_a_thing || is_of_request => 0.85,
            // What is to be written is mostly new.
            _ => 0.05,
        };
        if let Some(user_id) = self.user_id
            && known::name(field).ends_with("user")
            && self.random.random_bool(likelihood)
        {
            return user_id.to_owned();
        }
        if self.random.random_bool(likelihood)
            && let Some(text) = self.known.fitting(field, self.random)
        {
            return text;
        }
        let uuid = self.uuid();
        match name {
            _ if names_a_thing && name != "after_id" => uuid,
            "filter" => (*FILTERS.choose(self.random).unwrap()).to_owned(),
            _ if OPTIONAL.contains(&name) => String::new(),
            "currency_code" => "EUR".to_owned(),
            "email" => format!("{uuid}@example.com"),
            "sku" => uuid.to_uppercase(),
            _ if name.contains("password") => PASSWORD.to_owned(),
            _ => "Manila rope".to_owned(),
        }
    }

    fn uuid(&mut self) -> String {
        Builder::from_random_bytes(self.random.random()).into_uuid().to_string()
    }
}
