//! Whether an answer is one that the contract documents.

use prost_reflect::DynamicMessage;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    rpc::Rpc,
    wire::{Answer, Request},
};

/// Codes that any call may be answered with, whatever it is for.
const COMMON: [Code; 6] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::Unauthenticated,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::DeadlineExceeded,
];

/// What only the inside of a service knows.
const INTERNALS: [&str; 5] = ["sqlx", "sqlite", "panicked", "tonic::", ".rs:"];

/// An answer, judged.
pub(super) struct Judged {
    /// The code, as gRPC writes it.
    pub(super) outcome: String,
    /// What is wrong with the answer.
    pub(super) fault: Option<String>,
    /// The messages that came.
    pub(super) messages: Vec<DynamicMessage>,
}

impl Judged {
    /// Whether the service did what it was asked for.
    pub(super) fn is_accepted(&self) -> bool {
        self.outcome == name(Code::Ok)
    }
}

/// Judges the answer to a request that meant to call `rpc`.
pub(super) fn judge(rpc: &Rpc, request: &Request, answer: Answer) -> Judged {
    let (outcome, fault, messages) = match answer {
        Answer::Broken(how) => ("broken".to_owned(), Some(how), Vec::new()),
        Answer::Ended { status: None, .. } => {
            ("missing".to_owned(), Some("there is no status".to_owned()), Vec::new())
        }
        Answer::Ended { status: Some(status), messages } => {
            (name(status.code()), fault(rpc, request, &status), messages)
        }
    };
    let decoded: Result<Vec<_>, _> = messages
        .into_iter()
        .map(|message| DynamicMessage::decode(rpc.method.output(), message))
        .collect();
    match decoded {
        Ok(messages) => Judged { outcome, fault, messages },
        Err(error) => Judged { outcome, fault: Some(error.to_string()), messages: Vec::new() },
    }
}

/// What is wrong with a status, if anything is.
fn fault(rpc: &Rpc, request: &Request, status: &Status) -> Option<String> {
    let (code, message) = (status.code(), status.message());
    let says = |problem: &str| Some(format!("{problem}: {} {message:?}", name(code)));
    if code == Code::Ok {
        return None;
    }
    let another_call = request.path != rpc.path
        || request.line.0 != rpc.service
        || request.headers.contains_key("grpc-encoding");
    let is_common = COMMON.contains(&code) || (code == Code::Unimplemented && another_call);
    if !is_common {
        if !rpc.documents(&name(code)) {
            return says("the contract does not document this code");
        }
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        if !rpc.documents(&reason) {
            return says(&format!("the contract does not document the reason {reason:?}"));
        }
    }
    if INTERNALS.iter().any(|internal| message.to_lowercase().contains(internal)) {
        return says("the message tells of the inside");
    }
    let violations =
        status.get_details_bad_request().map(|it| it.field_violations).unwrap_or_default();
    if violations.iter().any(|it| it.field.is_empty() || it.description.is_empty()) {
        return says("a violation is of no field, or says nothing");
    }
    // What is wrong comes first; what to send instead follows.
    let is_clear = !violations.is_empty() || message.contains("; ");
    if is_clear { None } else { says("the message does not say what to do") }
}

/// The name of a code as gRPC writes it.
fn name(code: Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}
