//! The answer to a call, from its first byte to its last.
//!
//! HTTP/2 takes nothing more from a reader who has stopped reading, and then does not so
//! much as look at the body. So what ends a stream is a task of its own, which drops all
//! that the call holds, a page of rows, a place among the calls, a request that is
//! half read; the status waits until the reader reads on.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use client::{
    Deadline, deadline,
    end_user::{self, Token},
};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use prost::bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body};
use tracing::Span;

use super::{compression::Encoding, load::Place, record};
use crate::{error, framing};

/// Under what an answer is made, like the call itself.
pub(super) struct Scope {
    pub(super) deadline: Option<Deadline>,
    pub(super) token: Option<Token>,
    pub(super) span: Span,
}

/// The body of a response.
pub(super) struct Answer {
    /// None once the call has ended.
    open: Arc<Mutex<Option<Open>>>,
    scope: Scope,
    encoding: Option<Encoding>,
    /// Tells how the call has ended if its body did not end by itself.
    end: Option<AbortOnDropHandle<Status>>,
    is_over: bool,
}

/// What a call holds while it is under way.
struct Open {
    body: Body,
    _place: Option<Place>,
}

impl Answer {
    /// An answer whose message is there, and needs no more than to be sent.
    pub(super) fn whole(body: Body, scope: Scope, encoding: Option<Encoding>) -> Self {
        let open = Arc::new(Mutex::new(Some(Open { body, _place: None })));
        Self { open, scope, encoding, end: None, is_over: false }
    }

    /// An answer that is still being made, until `end` says why no longer.
    pub(super) fn stream(
        body: Body,
        scope: Scope,
        encoding: Option<Encoding>,
        place: Option<Place>,
        end: impl Future<Output = Status> + Send + 'static,
    ) -> Self {
        let open = Arc::new(Mutex::new(Some(Open { body, _place: place })));
        let (held, span) = (Arc::downgrade(&open), scope.span.clone());
        let end = tokio::spawn(async move {
            let status = end.await;
            record(&span, status.code());
            let held = held.upgrade().and_then(|open| lock(&open).take());
            drop(held);
            status
        });
        Self { open, scope, encoding, end: Some(AbortOnDropHandle::new(end)), is_over: false }
    }

    /// The next frame of the body; pending, too, once the body was taken away.
    fn poll_body(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Scope { deadline, token, .. } = &self.scope;
        let mut open = lock(&self.open);
        let Some(Open { body, .. }) = &mut *open else { return Poll::Pending };
        deadline::sync_scope(*deadline, || {
            end_user::sync_scope(token.clone(), || Pin::new(body).poll_frame(context))
        })
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        let Some(end) = &mut self.end else { return Poll::Pending };
        // Nobody aborts the task while this is here, so that it can only have panicked.
        let status = ready!(Pin::new(end).poll(context)).unwrap_or_else(|it| error::internal(&it));
        let mut trailers = HeaderMap::new();
        // Its message is text, so that it can always be a trailer.
        let _ = status.add_header(&mut trailers);
        Poll::Ready(Frame::trailers(trailers))
    }

    fn finish(&mut self) {
        self.is_over = true;
        self.end = None;
        let held = lock(&self.open).take();
        drop(held);
    }
}

fn lock(open: &Mutex<Option<Open>>) -> MutexGuard<'_, Option<Open>> {
    // A body that has panicked is dropped all the same.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        let span = this.scope.span.clone();
        let _entered = span.enter();
        match this.poll_body(context) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    if let Some(code) = framing::correct(trailers) {
                        record(&span, code);
                    }
                    this.finish();
                } else if let Some(encoding) = this.encoding {
                    frame = frame.map_data(|messages| encoding.compress(messages));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => {
                this.finish();
                Poll::Ready(other)
            }
            Poll::Pending => {
                let trailers = ready!(this.poll_end(context));
                this.finish();
                Poll::Ready(Some(Ok(trailers)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}
