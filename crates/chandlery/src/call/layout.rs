//! A status as people read it: what happened, and below it each detail.

use std::{collections::BTreeMap, fmt};

use prost::Message;
use prost_reflect::DynamicMessage;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::pb;

use super::rpc;

/// Lays out a status over several lines.
pub(super) struct Layout<'a>(pub(super) &'a Status);

impl fmt::Display for Layout<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(status) = self;
        write!(formatter, "{}: {}", name(status.code()), status.message())?;
        // Details that are none are not worth hiding the status for.
        let details = pb::Status::decode(status.details()).unwrap_or_default().details;
        for (label, value) in details.iter().flat_map(lines) {
            write!(formatter, "\n  {label:8}  {value}")?;
        }
        Ok(())
    }
}

/// The labels and values of a detail.
fn lines(detail: &Any) -> Vec<(&'static str, String)> {
    known_lines(detail).unwrap_or_else(|| vec![("detail", any(detail))])
}

fn known_lines(detail: &Any) -> Option<Vec<(&'static str, String)>> {
    let value = detail.value.as_slice();
    Some(match type_name(detail) {
        "google.rpc.ErrorInfo" => {
            let pb::ErrorInfo { reason, domain, metadata } = pb::ErrorInfo::decode(value).ok()?;
            let metadata: BTreeMap<_, _> = metadata.into_iter().collect();
            let metadata = metadata.into_iter().map(|(key, value)| format!("{key} = {value}"));
            [("reason", reason), ("domain", domain)]
                .into_iter()
                .chain(metadata.map(|line| ("metadata", line)))
                .collect()
        }
        "google.rpc.BadRequest" => {
            let violations = pb::BadRequest::decode(value).ok()?.field_violations;
            let line = |violation: pb::bad_request::FieldViolation| {
                ("field", format!("{}: {}", violation.field, violation.description))
            };
            violations.into_iter().map(line).collect()
        }
        "google.rpc.RetryInfo" => {
            let delay = pb::RetryInfo::decode(value).ok()?.retry_delay?;
            vec![("retry", format!("after {delay}"))]
        }
        _ => return None,
    })
}

/// A detail by its type, and as JSON if the type is known.
fn any(detail: &Any) -> String {
    let json = rpc::message(type_name(detail))
        .and_then(|descriptor| DynamicMessage::decode(descriptor, &*detail.value).ok())
        .and_then(|message| serde_json::to_string(&message).ok())
        .unwrap_or_default();
    format!("{} {json}", detail.type_url).trim_end().to_owned()
}

fn type_name(detail: &Any) -> &str {
    detail.type_url.rsplit('/').next().unwrap_or_default()
}

/// A code as the documents of gRPC write it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_status_is_followed_by_its_details() {
        let mut details = ErrorDetails::new();
        let metadata = HashMap::from([("sku".to_owned(), "A".to_owned())]);
        details
            .set_error_info("OUT_OF_STOCK", "chandlery.local", metadata)
            .add_bad_request_violation("items[0].quantity", "is too large")
            .add_bad_request_violation("user_id", "is missing")
            .set_retry_info(Some(Duration::from_millis(1500)))
            .add_help_link("more", "https://example.com");
        let status = Status::with_error_details(Code::FailedPrecondition, "no", details);
        let text = Layout(&status).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "FAILED_PRECONDITION: no");
        for line in [
            "  reason    OUT_OF_STOCK",
            "  domain    chandlery.local",
            "  metadata  sku = A",
            "  field     items[0].quantity: is too large",
            "  field     user_id: is missing",
            "  retry     after 1.500s",
        ] {
            assert!(lines.contains(&line), "{text}");
        }
        let help = "  detail    type.googleapis.com/google.rpc.Help {\"links\":[";
        assert!(lines.iter().any(|line| line.starts_with(help)), "{text}");
    }

    #[test]
    fn details_that_cannot_be_read_hide_nothing() {
        let status = Status::with_details(Code::Internal, "broken", vec![0xff; 3].into());
        assert_eq!(Layout(&status).to_string(), "INTERNAL: broken");
        let value = vec![0xff];
        let details = ["example.com/google.rpc.ErrorInfo", "example.com/a.b.C", ""]
            .map(|name| Any { type_url: name.to_owned(), value: value.clone() });
        let details = pb::Status { code: 5, message: String::new(), details: details.to_vec() };
        let status = Status::with_details(Code::NotFound, "gone", details.encode_to_vec().into());
        let text = Layout(&status).to_string();
        assert!(text.contains("\n  detail    example.com/google.rpc.ErrorInfo\n"), "{text}");
        assert!(text.contains("\n  detail    example.com/a.b.C\n"), "{text}");
    }
}
