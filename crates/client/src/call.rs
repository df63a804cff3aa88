//! One call: its span, its deadline, and its end.

use std::{
    error::Error as StdError,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use opentelemetry::{global, propagation::Injector};
use tokio::time::{Sleep, sleep_until};
use tonic::{Code, Status, TimeoutExpired, body::Body};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{connect, deadline::Deadline};

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

    /// Awaits the response, and sees to it that its body ends in time too.
    pub(crate) async fn run<E>(
        mut self,
        response: impl Future<Output = Result<http::Response<Body>, E>>,
    ) -> Result<http::Response<Body>, Status>
    where
        E: StdError + 'static,
    {
        if self.deadline.is_some_and(Deadline::has_passed) {
            return Err(self.end_late());
        }
        let mut timer = self.deadline.map(|deadline| Box::pin(sleep_until(deadline.instant())));
        let mut response = pin!(response);
        let response = std::future::poll_fn(|context| {
            if has_fired(&mut timer, context) {
                return Poll::Ready(Err(self.end_late()));
            }
            let response = ready!(response.as_mut().poll(context));
            Poll::Ready(response.map_err(|error| self.end_broken(&error)))
        })
        .await?;

        // A response that is nothing but a status has it among its headers.
        if let Some(code) = status_code(response.headers()) {
            self.end(code);
            return Ok(response);
        }
        Ok(response.map(|body| Body::new(ResponseBody { body: Some(body), timer, call: self })))
    }

    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            self.span.record("rpc.grpc.status_code", i32::from(code));
            if code != Code::Ok {
                self.span.record("otel.status_code", "ERROR");
            }
        }
    }

    fn end_late(&mut self) -> Status {
        self.end(Code::DeadlineExceeded);
        Status::deadline_exceeded(format!("{} did not answer in time", self.peer))
    }

    fn end_broken(&mut self, error: &(dyn StdError + 'static)) -> Status {
        if connect::chain(error).any(<dyn StdError>::is::<TimeoutExpired>) {
            return self.end_late();
        }
        self.end(Code::Unavailable);
        Status::unavailable(format!("{}: {}", self.peer, connect::cause(error)))
    }
}

impl Drop for Call {
    /// A call that is dropped before its end was given up by its caller.
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The body of a response, which ends with the deadline of its call.
struct ResponseBody {
    /// None once the call has ended.
    body: Option<Body>,
    timer: Option<Pin<Box<Sleep>>>,
    call: Call,
}

impl http_body::Body for ResponseBody {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if has_fired(&mut this.timer, context) {
            this.body = None;
            return Poll::Ready(Some(Err(this.call.end_late())));
        }
        let frame = match ready!(Pin::new(body).poll_frame(context)) {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.body = None;
                    this.call.end(status_code(trailers).unwrap_or(Code::Unknown));
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                this.body = None;
                Some(Err(this.call.end_broken(&error)))
            }
            None => {
                this.body = None;
                this.call.end(Code::Unknown);
                None
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

fn has_fired(timer: &mut Option<Pin<Box<Sleep>>>, context: &mut Context<'_>) -> bool {
    timer.as_mut().is_some_and(|timer| timer.as_mut().poll(context).is_ready())
}

fn status_code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
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
