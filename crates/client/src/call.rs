//! One call: its span, its deadline, and its end.

use std::{future::Future, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{global, propagation::Injector};
use tokio::time::timeout_at;
use tonic::{Code, Status};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    connection::loss,
    deadline::Deadline,
    response::{Answer, ResponseBody},
};

/// A call from its first byte to the end of its response.
pub(crate) struct Call {
    span: Span,
    /// The peer as errors name it.
    peer: Arc<str>,
    deadline: Option<Deadline>,
    ended: bool,
}

impl Call {
    /// Opens the client span of a call to `path`, `/package.Service/Method`.
    pub(crate) fn new(path: &str, peer: Arc<str>, deadline: Option<Deadline>) -> Self {
        let name = path.trim_start_matches('/');
        let (service, method) = name.rsplit_once('/').unwrap_or(("", name));
        let span = tracing::info_span!(
            "call",
            otel.name = name,
            otel.kind = "client",
            otel.status_code = field::Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = field::Empty,
        );
        Self { span, peer, deadline, ended: false }
    }

    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Hands the trace on in the headers of the request.
    pub(crate) fn inject_trace(&self, headers: &mut HeaderMap) {
        let context = self.span.context();
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Headers(headers));
        });
    }

    /// Awaits the answer, and sees to it that the response ends in time too.
    pub(crate) async fn run(
        mut self,
        answer: impl Future<Output = Result<Answer, Status>>,
    ) -> Result<http::Response<ResponseBody>, Status> {
        let answer = match self.deadline {
            Some(deadline) if deadline.has_passed() => return Err(self.end_late()),
            Some(deadline) => match timeout_at(deadline.instant(), answer).await {
                Ok(answer) => answer,
                Err(_) => return Err(self.end_late()),
            },
            None => answer.await,
        };
        match answer {
            Ok(answer) => Ok(answer.into_response(self)),
            Err(status) => {
                self.end(status.code());
                Err(status)
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    pub(crate) fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            self.span.record("rpc.grpc.status_code", i32::from(code));
            if code != Code::Ok {
                self.span.record("otel.status_code", "ERROR");
            }
        }
    }

    pub(crate) fn end_late(&mut self) -> Status {
        self.end(Code::DeadlineExceeded);
        Status::deadline_exceeded(format!("{} did not answer in time", self.peer))
    }

    pub(crate) fn end_broken(&mut self, error: &hyper::Error) -> Status {
        self.end(Code::Unavailable);
        Status::unavailable(format!("{}: {}", self.peer, loss(error)))
    }
}

impl Drop for Call {
    /// A call that is dropped before its end was given up by its caller.
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The headers of a request, as a propagator fills them.
struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
