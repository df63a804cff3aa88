//! Errors as callers see them: a code, a reason for programs
//! (`google.rpc.ErrorInfo`, <https://google.aip.dev/193>) and a sentence for
//! people. What is inside a service is logged once and never sent.

use std::{collections::HashMap, fmt::Display, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `domain` of every `ErrorInfo` of the suite.
pub const DOMAIN: &str = "chandlery.local";

/// Refuses a request for a reason that the contract names.
pub fn refusal(code: Code, reason: &str, message: impl Into<String>) -> Status {
    refusal_about(code, reason, message, [])
}

/// [`refusal`] that names for programs what it is about, for example `product_id`.
pub fn refusal_about<const N: usize>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    about: [(&str, String); N],
) -> Status {
    let metadata: HashMap<_, _> =
        about.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

/// When to repeat a call that was refused, in milliseconds, as gRPC's own clients read it.
/// <https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>
const PUSH_BACK: &str = "grpc-retry-pushback-ms";

/// Refuses a request because there is too much to do, and says for how long. Nothing was
/// done for it, so that any call may be repeated.
pub fn exhausted(reason: &str, message: impl Into<String>, retry_delay: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    details.set_retry_info(Some(retry_delay));
    let mut status = Status::with_error_details(Code::ResourceExhausted, message, details);
    if let Ok(delay) = retry_delay.as_millis().to_string().parse() {
        status.metadata_mut().insert(PUSH_BACK, delay);
    }
    status
}

/// All that a caller learns of a failure of the service itself.
pub(crate) const INTERNAL: &str =
    "the service failed; the cause is in its log under the trace of this call";

/// Reports a failure of the service itself: the cause is logged with the trace of
/// the call, the caller learns only that it may try again.
pub fn internal(cause: &dyn Display) -> Status {
    tracing::error!(%cause, "call failed");
    Status::internal(INTERNAL)
}

/// Reports that the service cannot do its work now: the cause is logged, the
/// caller may repeat the call.
pub fn unavailable(cause: &dyn Display) -> Status {
    tracing::warn!(%cause, "call could not be served");
    Status::unavailable("the service cannot do this now; repeat the call")
}

/// The reason of a status that [`refusal`] made, here or in another service of the
/// suite.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().filter(|info| info.domain == DOMAIN).map(|info| info.reason)
}
