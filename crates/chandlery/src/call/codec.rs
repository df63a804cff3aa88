//! The Protobuf codec of messages that only their descriptors know.

use prost_reflect::{DynamicMessage, MessageDescriptor};
use tonic::{
    Status,
    codec::{Codec as TonicCodec, DecodeBuf, Decoder as TonicDecoder},
};
use tonic_prost::ProstEncoder;

/// Encodes any message and decodes answers.
#[derive(Debug)]
pub(super) struct Codec {
    /// What an answer is.
    pub(super) answer: MessageDescriptor,
}

impl TonicCodec for Codec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = ProstEncoder<DynamicMessage>;
    type Decoder = Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Decoder {
        Decoder(self.answer.clone())
    }
}

/// Decodes messages of one type.
#[derive(Debug)]
pub(super) struct Decoder(MessageDescriptor);

impl TonicDecoder for Decoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.clone(), buffer).map(Some).map_err(|error| {
            Status::internal(format!("the answer is no {}: {error}", self.0.full_name()))
        })
    }
}
