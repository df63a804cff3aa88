//! What a caller gets wrong about the call itself, whatever it asks for. tonic takes
//! most of it for a failure of the server.

use http::{HeaderMap, Method, Request, StatusCode, header::CONTENT_TYPE};
use tonic::{Code, Status};

use crate::error;

/// The most bytes that the metadata of a call may have, the path and, for each entry,
/// the overhead that HTTP/2 counts included (RFC 9113, section 6.5.2).
const METADATA_LIMIT: usize = 8 << 10;
const ENTRY_OVERHEAD: usize = 32;

/// How tonic begins to say, as INTERNAL, that it cannot read what was sent.
const UNREADABLE: [&str; 4] = [
    "Missing request message",
    "protocol error: received message with",
    "Unexpected EOF decoding stream",
    "Error decompressing",
];

/// Refuses what is no call of gRPC, with the status of HTTP that goes with it.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), (StatusCode, Status)> {
    if request.method() != Method::POST {
        let problem = format!("the HTTP method is {}; send POST", request.method());
        return Err((StatusCode::METHOD_NOT_ALLOWED, Status::invalid_argument(problem)));
    }
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], |it| it.as_bytes());
    if !is_grpc(content_type) {
        let problem = "the content-type is not that of gRPC; send application/grpc";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, Status::invalid_argument(problem)));
    }
    let entries = request.headers().iter();
    let entries = entries.map(|(name, value)| name.as_str().len() + value.len() + ENTRY_OVERHEAD);
    let size = request.uri().path().len() + entries.sum::<usize>();
    if size > METADATA_LIMIT {
        let problem = format!("the metadata has {size} bytes; send at most {METADATA_LIMIT}");
        return Err((StatusCode::OK, Status::resource_exhausted(problem)));
    }
    Ok(())
}

fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| {
        let rest = rest.strip_prefix(b"+proto").unwrap_or(rest);
        matches!(rest.first(), None | Some(b';' | b' '))
    })
}

/// Corrects the status in the head or the trailers of an answer, if it is one that tonic
/// made of what it could not read, and tells the code that the caller will see.
pub(crate) fn correct(headers: &mut HeaderMap) -> Option<Code> {
    let status = Status::from_header_map(headers)?;
    let Some(corrected) = corrected(&status) else {
        return Some(status.code());
    };
    // Its message is text, so that it can always be a header.
    let _ = corrected.add_header(headers);
    Some(corrected.code())
}

fn corrected(status: &Status) -> Option<Status> {
    let message = status.message().trim_end_matches('.');
    match status.code() {
        Code::Internal if UNREADABLE.iter().any(|it| message.starts_with(it)) => {
            Some(Status::invalid_argument(format!(
                "the body of the call cannot be read: {message}; send each message whole, after \
                 a flag that says whether it is compressed, and its length"
            )))
        }
        // Whatever else failed is ours, and what is inside is never sent.
        Code::Internal if message != error::INTERNAL => Some(error::internal(&message)),
        Code::OutOfRange => Some(too_large(message)),
        Code::ResourceExhausted if message.starts_with("Error decompressing") => {
            Some(too_large(message))
        }
        Code::Unimplemented if message.is_empty() => {
            Some(Status::unimplemented("this service has no such RPC; call the one that has"))
        }
        Code::Unimplemented if message.starts_with("Content is compressed") => {
            Some(Status::unimplemented(format!("{message}; send it as it is, or in gzip or zstd")))
        }
        _ => None,
    }
}

fn too_large(message: &str) -> Status {
    Status::resource_exhausted(format!("the message is too large: {message}; send less at once"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: http::request::Builder) -> Option<(u16, Code)> {
        let refused = check(&request.body(()).unwrap()).err();
        refused.map(|(http, status)| (http.as_u16(), status.code()))
    }

    #[test]
    fn what_is_no_call_of_grpc_is_refused() {
        let post = |content_type: &str| Request::post("/a.b/C").header(CONTENT_TYPE, content_type);
        for good in ["application/grpc", "application/grpc+proto", "application/grpc; a=b"] {
            assert_eq!(refused(post(good)), None, "{good}");
        }
        for bad in ["", "application/grpc-web", "application/grpc+json", "text/plain"] {
            assert_eq!(refused(post(bad)), Some((415, Code::InvalidArgument)), "{bad}");
        }
        assert_eq!(refused(Request::post("/a.b/C")), Some((415, Code::InvalidArgument)));
        assert_eq!(refused(Request::get("/a.b/C")), Some((405, Code::InvalidArgument)));
        let long = post("application/grpc").header("authorization", "a".repeat(METADATA_LIMIT));
        assert_eq!(refused(long), Some((200, Code::ResourceExhausted)));
    }

    #[test]
    fn what_tonic_cannot_read_is_the_fault_of_the_caller_and_a_failure_is_ours() {
        let seen = |status: Status| {
            let mut headers = HeaderMap::new();
            status.add_header(&mut headers).unwrap();
            let code = correct(&mut headers).unwrap();
            assert_eq!(Status::from_header_map(&headers).unwrap().code(), code);
            code
        };
        assert_eq!(seen(Status::internal("Missing request message.")), Code::InvalidArgument);
        assert_eq!(seen(Status::out_of_range("too large")), Code::ResourceExhausted);
        assert_eq!(seen(Status::internal("Error decompressing: EOF")), Code::InvalidArgument);
        let bomb = Status::resource_exhausted("Error decompressing: size limit exceeded");
        assert!(corrected(&bomb).unwrap().message().ends_with("send less at once"));
        assert_eq!(seen(error::internal(&"the disk is full")), Code::Internal);
        let inside = corrected(&Status::internal("secret")).unwrap();
        assert_eq!((inside.code(), inside.message()), (Code::Internal, error::INTERNAL));
        assert_eq!(seen(Status::not_found("there is none")), Code::NotFound);
        assert_eq!(correct(&mut HeaderMap::new()), None);
    }
}
