//! Messages as people write them: JSON in an argument, in a file or on the standard
//! input.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    iter, mem, thread,
};

use futures::{Stream, stream};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::{Deserializer, de};
use serde_path_to_error::Track;
use tokio::sync::{mpsc, oneshot};

/// How many messages are read ahead of those that are sent.
const READ_AHEAD: usize = 16;

/// Why there is no message to send.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The JSON is not that of the message.
    #[error("{place} holds no {message}: {cause}")]
    Json {
        /// Where the JSON is.
        place: String,
        /// The full name of the message.
        message: String,
        /// The mistake: its field, if it is in one, its line and its column.
        cause: serde_path_to_error::Error<serde_json::Error>,
    },
    /// The file cannot be opened.
    #[error("{path} cannot be read: {cause}; `@` begins the name of a file with messages")]
    File {
        /// The file.
        path: String,
        /// What went wrong.
        cause: io::Error,
    },
    /// The RPC takes one message.
    #[error("one {0} is to be sent, and there is none")]
    Missing(String),
    /// The RPC takes one message.
    #[error("one {0} is to be sent, and there are several")]
    Several(String),
}

/// Messages that are read when they are asked for.
pub(super) type Messages = Box<dyn Iterator<Item = Result<DynamicMessage, Error>> + Send>;

/// The messages that the arguments give, one after another; an empty one if there
/// are no arguments. What is an argument itself is read at once.
pub(super) fn messages(
    arguments: &[String],
    descriptor: &MessageDescriptor,
) -> Result<Messages, Error> {
    if arguments.is_empty() {
        return Ok(Box::new(iter::once(Ok(DynamicMessage::new(descriptor.clone())))));
    }
    let sources =
        arguments.iter().enumerate().map(|(index, argument)| -> Result<Messages, Error> {
            if argument == "-" {
                return Ok(Box::new(read(
                    "the standard input".to_owned(),
                    io::stdin(),
                    descriptor,
                )));
            }
            if let Some(path) = argument.strip_prefix('@') {
                let file = File::open(path)
                    .map_err(|cause| Error::File { path: path.to_owned(), cause })?;
                return Ok(Box::new(read(path.to_owned(), file, descriptor)));
            }
            let place = format!("message {}", index + 1);
            let mut json = Deserializer::from_str(argument);
            let message = parse(&mut json, descriptor)
                .and_then(|message| json.end().map(|()| message).map_err(at_the_top))
                .map_err(|cause| refuse(&place, descriptor, cause))?;
            Ok(Box::new(iter::once(Ok(message))))
        });
    let sources: Vec<_> = sources.collect::<Result<_, _>>()?;
    Ok(Box::new(sources.into_iter().flatten()))
}

/// The one message that there must be.
pub(super) fn only(
    mut messages: Messages,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage, Error> {
    let name = || descriptor.full_name().to_owned();
    let message = messages.next().ok_or_else(|| Error::Missing(name()))??;
    match messages.next() {
        None => Ok(message),
        Some(another) => another.and_then(|_| Err(Error::Several(name()))),
    }
}

/// The messages as a stream that goes on while nothing is typed, and the error that
/// breaks it, if one does.
pub(super) fn stream(
    messages: Messages,
) -> (impl Stream<Item = DynamicMessage> + Send + 'static, oneshot::Receiver<Error>) {
    let (sender, mut receiver) = mpsc::channel(READ_AHEAD);
    let (breaks, broken) = oneshot::channel();
    // No task of the runtime, which would wait at its end for what is never typed.
    thread::spawn(move || {
        for message in messages {
            match message {
                Ok(message) => {
                    if sender.blocking_send(message).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = breaks.send(error);
                    // The stream never ends: what was sent is not all there is, and the
                    // service must not take it for that.
                    return mem::forget(sender);
                }
            }
        }
    });
    (stream::poll_fn(move |context| receiver.poll_recv(context)), broken)
}

/// One message after another, with any white space between them.
fn read(
    place: String,
    source: impl Read + Send + 'static,
    descriptor: &MessageDescriptor,
) -> impl Iterator<Item = Result<DynamicMessage, Error>> + Send + 'static {
    let descriptor = descriptor.clone();
    let mut json = Deserializer::from_reader(BufReader::new(source));
    iter::from_fn(move || {
        let message = match json.end() {
            Ok(()) => return None,
            Err(error) if error.is_io() => Err(at_the_top(error)),
            // What is no end begins the next message, and is still to be read.
            Err(_) => parse(&mut json, &descriptor),
        };
        Some(message.map_err(|cause| refuse(&place, &descriptor, cause)))
    })
}

type Mistake = serde_path_to_error::Error<serde_json::Error>;

fn parse<'de, R: de::Read<'de>>(
    json: &mut Deserializer<R>,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage, Mistake> {
    let mut track = Track::new();
    let json = serde_path_to_error::Deserializer::new(json, &mut track);
    DynamicMessage::deserialize(descriptor.clone(), json)
        .map_err(|cause| Mistake::new(track.path(), cause))
}

fn at_the_top(cause: serde_json::Error) -> Mistake {
    Mistake::new(Track::new().path(), cause)
}

fn refuse(place: &str, descriptor: &MessageDescriptor, cause: Mistake) -> Error {
    let (place, message) = (place.to_owned(), descriptor.full_name().to_owned());
    Error::Json { place, message, cause }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use futures::{FutureExt, StreamExt};
    use prost_reflect::Value;

    use super::*;
    use crate::call::rpc::message;

    fn request() -> MessageDescriptor {
        message("chandlery.catalog.v1.ImportProductsRequest").unwrap()
    }

    fn given(json: &str) -> Result<DynamicMessage, String> {
        let messages =
            messages(&[json.to_owned()], &request()).map_err(|error| error.to_string())?;
        only(messages, &request()).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_have_the_names_of_json_and_of_the_contract() {
        for json in [r#"{"initialQuantity": "7"}"#, r#"{"initial_quantity": 7}"#] {
            let message = given(json).unwrap();
            let quantity = message.get_field_by_name("initial_quantity").unwrap().into_owned();
            assert_eq!(quantity, Value::I64(7), "{json}");
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_field_its_line_and_its_column() {
        for (json, mistake) in [
            (r#"{"produkt": {}}"#, "unrecognized field name 'produkt' at line 1 column 10"),
            (
                r#"{"product": {"nam": ""}}"#,
                "product: unrecognized field name 'nam' at line 1 column",
            ),
            ("{\n \"product\": {\"name\": 7}}", "product.name: invalid type: integer `7`"),
            (r#"{"product": "#, "product: EOF while parsing a value at line 1 column 12"),
            ("{} {}", "trailing characters at line 1 column 4"),
            ("[]", "invalid type: sequence"),
            ("", "EOF while parsing a value"),
        ] {
            let refusal = given(json).unwrap_err();
            let place = "message 1 holds no chandlery.catalog.v1.ImportProductsRequest: ";
            assert!(refusal.starts_with(&format!("{place}{mistake}")), "{refusal}");
        }
        let nested = "[".repeat(10_000);
        assert!(given(&format!(r#"{{"product": {{"name": {nested}"#)).is_err());
    }

    #[test]
    fn messages_are_read_one_after_another_until_one_is_wrong() {
        let json = "{} {\"initialQuantity\":1}{\n}\n\n{\"initialQuantity\":\"x\"}\n{}";
        let mut messages = read("the file".to_owned(), Cursor::new(json), &request());
        assert_eq!(messages.by_ref().take(3).filter_map(Result::ok).count(), 3);
        let mistake = messages.next().unwrap().unwrap_err().to_string();
        assert!(mistake.starts_with("the file holds no "), "{mistake}");
        assert!(mistake.contains("initialQuantity: ") && mistake.contains("line 4"), "{mistake}");
    }

    #[test]
    fn nothing_given_is_one_empty_message() {
        let messages = messages(&[], &request()).unwrap();
        assert_eq!(only(messages, &request()).unwrap(), DynamicMessage::new(request()));
    }

    #[test]
    fn one_message_is_neither_none_nor_several() {
        let none = read("the file".to_owned(), Cursor::new(" \n"), &request());
        assert!(matches!(only(Box::new(none), &request()), Err(Error::Missing(_))));
        let two = messages(&["{}".to_owned(), "{}".to_owned()], &request()).unwrap();
        assert!(matches!(only(two, &request()), Err(Error::Several(_))));
    }

    #[tokio::test]
    async fn a_stream_with_a_mistake_has_no_end_that_could_be_taken_for_its_own() {
        let whole = read("the file".to_owned(), Cursor::new("{} {}"), &request());
        let (messages, broken) = stream(Box::new(whole));
        assert!(broken.await.is_err());
        assert_eq!(messages.count().await, 2);

        let wrong = read("the file".to_owned(), Cursor::new("{} {} []"), &request());
        let (mut messages, broken) = stream(Box::new(wrong));
        assert!(broken.await.is_ok());
        assert_eq!(messages.by_ref().take(2).count().await, 2);
        assert!(messages.next().now_or_never().is_none());
    }
}
