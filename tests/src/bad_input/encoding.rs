//! Messages that are not what Protobuf makes of them.

use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

/// A number that no message of the contract uses.
const UNKNOWN_FIELD: u32 = 536_870_911;

type Way = fn(&mut Vec<u8>, &MessageDescriptor, &mut StdRng);

const WAYS: [(&str, Way); 13] = [
    ("text that is not UTF-8", |message, descriptor, random| {
        append_in_text(message, descriptor, b"rope \xff\xfe", random);
    }),
    ("a megabyte of text", |message, descriptor, random| {
        append_in_text(message, descriptor, &vec![b'a'; 1 << 20], random);
    }),
    ("every field twice", |message, _, _| message.extend_from_within(..)),
    ("another wire type", |message, descriptor, random| {
        let fields: Vec<_> = descriptor.fields().collect();
        let number = fields.choose(random).map_or(1, FieldDescriptor::number);
        let wire_types = [WireType::Varint, WireType::SixtyFourBit, WireType::ThirtyTwoBit];
        encode_key(number, *wire_types.choose(random).unwrap(), message);
        message.extend([1; 8]);
    }),
    ("an unknown field", |message, _, _| append(message, UNKNOWN_FIELD, b"what?")),
    ("an unknown group", |message, _, _| {
        encode_key(UNKNOWN_FIELD, WireType::StartGroup, message);
        append(message, 1, b"what?");
        encode_key(UNKNOWN_FIELD, WireType::EndGroup, message);
    }),
    ("groups in groups", |message, _, random| {
        let depth = *[50, 101, 100_000].choose(random).unwrap();
        (0..depth).for_each(|_| encode_key(UNKNOWN_FIELD, WireType::StartGroup, message));
        (0..depth).for_each(|_| encode_key(UNKNOWN_FIELD, WireType::EndGroup, message));
    }),
    ("messages in messages", |message, descriptor, random| {
        let messages: Vec<_> =
            descriptor.fields().filter(|it| matches!(it.kind(), Kind::Message(_))).collect();
        let number = messages.choose(random).map_or(1, FieldDescriptor::number);
        let nested = (0..1_000).fold(Vec::new(), |inner, _| {
            let mut outer = Vec::new();
            append(&mut outer, number, &inner);
            outer
        });
        message.extend(nested);
    }),
    ("the end of a group that never began", |message, _, _| {
        encode_key(1, WireType::EndGroup, message);
    }),
    ("a field of number zero", |message, _, _| message.extend([0x02, 0x00])),
    ("a length that is larger than the message", |message, descriptor, random| {
        let fields: Vec<_> = descriptor.fields().collect();
        let number = fields.choose(random).map_or(1, FieldDescriptor::number);
        encode_key(number, WireType::LengthDelimited, message);
        encode_varint(*[100, u64::from(u32::MAX), u64::MAX].choose(random).unwrap(), message);
    }),
    ("a number without an end", |message, _, _| message.extend([0xff; 11])),
    ("bytes turned over", |message, _, random| {
        for _ in 0..random.random_range(1..=3) {
            let length = message.len();
            if length > 0 {
                message[random.random_range(..length)] ^= 1 << random.random_range(0..8);
            }
        }
    }),
];

/// Spoils one of the encoded messages, and says how.
pub(super) fn spoil(
    messages: &mut [Vec<u8>],
    descriptor: &MessageDescriptor,
    random: &mut StdRng,
) -> &'static str {
    let message = &mut messages[random.random_range(..messages.len())];
    if random.random_bool(0.1) {
        message.truncate(random.random_range(..=message.len()));
        return "the end of the message left away";
    }
    let (name, way) = WAYS.choose(random).unwrap();
    way(message, descriptor, random);
    name
}

fn append(message: &mut Vec<u8>, number: u32, content: &[u8]) {
    encode_key(number, WireType::LengthDelimited, message);
    encode_varint(content.len() as u64, message);
    message.extend(content);
}

/// Sets a text anywhere in a message: of a field that is there twice, the last counts.
fn append_in_text(
    message: &mut Vec<u8>,
    descriptor: &MessageDescriptor,
    content: &[u8],
    random: &mut StdRng,
) {
    let texts: Vec<_> = descriptor
        .fields()
        .filter(|it| matches!(it.kind(), Kind::String | Kind::Message(_)))
        .collect();
    let Some(field) = texts.choose(random) else { return };
    match field.kind() {
        Kind::Message(descriptor) => {
            let mut inner = Vec::new();
            append_in_text(&mut inner, &descriptor, content, random);
            append(message, field.number(), &inner);
        }
        _ => append(message, field.number(), content),
    }
}
