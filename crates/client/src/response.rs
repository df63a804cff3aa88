//! Responses: received whole where the call ends with them, so that a connection that
//! breaks in their midst is found out while the call can still be repeated; and handed on
//! as they come where they are streams.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, response::Parts};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep_until};
use tonic::{Code, Status, body::Body};

use crate::{call::Call, connection::Stream};

type Data = <Body as http_body::Body>::Data;

/// How much of a response is received before it is handed on: the largest message that
/// tonic decodes, and the five bytes before it.
const MAX_WHOLE: usize = 4 * 1024 * 1024 + 5;

/// What a frame costs at least, however little is in it.
const FRAME_COST: usize = 64;

/// What a peer has answered to one attempt.
pub(crate) struct Answer {
    pub(crate) head: Parts,
    body: Received,
}

enum Received {
    Whole { data: VecDeque<Data>, trailers: Option<HeaderMap> },
    Partly { data: VecDeque<Data>, rest: Incoming, stream: Stream },
}

impl Answer {
    /// The answer as far as its headers.
    pub(crate) fn begun(response: http::Response<Incoming>, stream: Stream) -> Self {
        let (head, rest) = response.into_parts();
        let data = VecDeque::new();
        // One that is nothing but a status has it among its headers.
        let body = match status_code(&head.headers) {
            Some(_) => Received::Whole { data, trailers: None },
            None => Received::Partly { data, rest, stream },
        };
        Self { head, body }
    }

    /// The answer to its end, unless it is too long for that.
    pub(crate) async fn whole(
        response: http::Response<Incoming>,
        stream: Stream,
    ) -> Result<Self, hyper::Error> {
        let (head, mut rest) = response.into_parts();
        let (mut data, mut size) = (VecDeque::new(), 0);
        let mut trailers = None;
        while size <= MAX_WHOLE {
            let frame = std::future::poll_fn(|context| Pin::new(&mut rest).poll_frame(context));
            let Some(frame) = frame.await.transpose()? else {
                return Ok(Self { head, body: Received::Whole { data, trailers } });
            };
            match frame.into_data() {
                Ok(more) => {
                    size += more.len().max(FRAME_COST);
                    data.push_back(more);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok(Self { head, body: Received::Partly { data, rest, stream } })
    }

    /// The status that it ended with; none if it has not.
    pub(crate) fn code(&self) -> Option<Code> {
        match &self.body {
            Received::Whole { .. } => Some(status_code(self.metadata()).unwrap_or(Code::Unknown)),
            Received::Partly { .. } => None,
        }
    }

    /// What the status stands in: the trailers, or else the headers.
    pub(crate) fn metadata(&self) -> &HeaderMap {
        match &self.body {
            Received::Whole { trailers: Some(trailers), .. } => trailers,
            _ => &self.head.headers,
        }
    }

    /// The response for the caller; the call ends with it.
    pub(crate) fn into_response(self, mut call: Call) -> http::Response<ResponseBody> {
        let code = self.code();
        let body = match self.body {
            Received::Whole { data, trailers } => {
                call.end(code.unwrap_or(Code::Unknown));
                State::Whole { data, trailers }
            }
            Received::Partly { data, rest, stream } => {
                let timer = call.deadline().map(|it| Box::pin(sleep_until(it.instant())));
                State::Open(Box::new(Open { data, rest, timer, call, _stream: stream }))
            }
        };
        http::Response::from_parts(self.head, ResponseBody(body))
    }
}

/// The body of a response, which ends with the deadline of its call.
pub struct ResponseBody(State);

enum State {
    Whole { data: VecDeque<Data>, trailers: Option<HeaderMap> },
    Open(Box<Open>),
}

/// What is left of a response that goes on.
struct Open {
    data: VecDeque<Data>,
    rest: Incoming,
    timer: Option<Pin<Box<Sleep>>>,
    call: Call,
    _stream: Stream,
}

const ENDED: State = State::Whole { data: VecDeque::new(), trailers: None };

impl http_body::Body for ResponseBody {
    type Data = Data;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, Status>>> {
        let state = &mut self.get_mut().0;
        let open = match state {
            State::Whole { data, trailers } => {
                let frame = data.pop_front().map(Frame::data);
                let frame = frame.or_else(|| trailers.take().map(Frame::trailers));
                return Poll::Ready(frame.map(Ok));
            }
            State::Open(open) => open,
        };
        let has_fired = |timer: &mut Pin<Box<Sleep>>| timer.as_mut().poll(context).is_ready();
        if open.timer.as_mut().is_some_and(has_fired) {
            let status = open.call.end_late();
            *state = ENDED;
            return Poll::Ready(Some(Err(status)));
        }
        if let Some(data) = open.data.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = match ready!(Pin::new(&mut open.rest).poll_frame(context)) {
            Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
            Some(Ok(frame)) => {
                let code = frame.trailers_ref().and_then(status_code);
                open.call.end(code.unwrap_or(Code::Unknown));
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(open.call.end_broken(&error))),
            None => {
                open.call.end(Code::Unknown);
                None
            }
        };
        *state = ENDED;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Whole { data, trailers } => data.is_empty() && trailers.is_none(),
            State::Open(open) => open.data.is_empty() && open.rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Whole { data, .. } => {
                SizeHint::with_exact(data.iter().map(|it| it.len() as u64).sum())
            }
            State::Open(_) => SizeHint::default(),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ResponseBody")
    }
}

fn status_code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}
