//! Values that a field cannot have, or only just.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

use super::known::Known;

const INTEGERS: [i64; 12] = [
    0,
    -1,
    1,
    1_000_001,
    1_000_000_001,
    -1_000_000_000,
    i32::MAX as i64,
    i32::MIN as i64,
    i64::MAX,
    i64::MAX - 1,
    i64::MIN,
    253_402_300_800,
];

const TEXTS: [&str; 22] = [
    "",
    " ",
    "\0",
    "a\0b",
    "\r\n",
    "\u{202e}\u{feff}",
    "e\u{301}\u{1f980}",
    "'; DROP TABLE users; --",
    "%00%s%n",
    "../../etc/passwd",
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "{01890a5d-ac96-774b-bcce-b302099a8057}",
    "01890a5dac96774bbcceb302099a8057",
    "01890a5d-ac96-774b-bcce-b302099a805\u{e9}",
    "eur",
    "\u{20ac}",
    "a@b@c",
    "name : \"",
    "\\",
    "bm9uc2Vuc2U",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
];

/// Lengths about the limits that the contract states, and far beyond.
const LENGTHS: [usize; 12] = [8, 36, 40, 41, 60, 61, 101, 201, 255, 501, 4_001, 1_048_576];

/// Spoils a field of one of the messages, and says which.
pub(super) fn spoil(messages: &mut [DynamicMessage], known: &Known, random: &mut StdRng) -> String {
    let message = &mut messages[random.random_range(..messages.len())];
    spoil_message(message, known, random)
}

fn spoil_message(message: &mut DynamicMessage, known: &Known, random: &mut StdRng) -> String {
    let fields: Vec<_> = message.descriptor().fields().collect();
    let Some(field) = fields.choose(random) else {
        return "nothing, for there is no field".to_owned();
    };
    let name = field.full_name().to_owned();
    if random.random_bool(0.1) {
        message.clear_field(field);
        return format!("{name} left away");
    }
    match message.get_field_mut(field) {
        Value::List(values) => spoil_list(values, field, known, random),
        Value::Message(inner) => return spoil_message(inner, known, random),
        value => *value = boundary(field, known, random),
    }
    format!("the value of {name}")
}

fn spoil_list(
    values: &mut Vec<Value>,
    field: &FieldDescriptor,
    known: &Known,
    random: &mut StdRng,
) {
    let element = values.choose(random).cloned();
    let count = *[0, 2, 100, 101, 10_000].choose(random).unwrap();
    match (element, random.random_bool(0.5)) {
        (Some(Value::Message(mut inner)), true) => {
            spoil_message(&mut inner, known, random);
            values.push(Value::Message(inner));
        }
        (Some(Value::Message(inner)), false) => *values = vec![Value::Message(inner); count],
        (Some(_), true) => values.push(boundary(field, known, random)),
        (Some(value), false) => *values = vec![value; count],
        (None, _) => {}
    }
}

fn boundary(field: &FieldDescriptor, known: &Known, random: &mut StdRng) -> Value {
    let integer = *INTEGERS.choose(random).unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "what is left is as good")]
    let (narrow, unsigned) = (integer as i32, integer.unsigned_abs());
    match field.kind() {
        Kind::String => Value::String(text(known, random)),
        Kind::Bool => Value::Bool(random.random()),
        Kind::Enum(_) => Value::EnumNumber(narrow),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(narrow),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(integer),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(narrow.unsigned_abs()),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(unsigned),
        Kind::Float => Value::F32(f32::NAN),
        Kind::Double => Value::F64(f64::NAN),
        Kind::Bytes => Value::Bytes(text(known, random).into()),
        Kind::Message(_) => Value::default_value_for_field(field),
    }
}

fn text(known: &Known, random: &mut StdRng) -> String {
    match random.random_range(0..3) {
        0 => {
            let character = *["a", "A", "7", "\u{1f980}"].choose(random).unwrap();
            character.repeat(*LENGTHS.choose(random).unwrap())
        }
        // The token of another list, the etag of another thing, the name of another kind.
        1 => known.anything(random).unwrap_or_default(),
        _ => (*TEXTS.choose(random).unwrap()).to_owned(),
    }
}
