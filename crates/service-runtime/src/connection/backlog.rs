//! The answers that callers have asked for and do not take. HTTP/2 bounds what a peer may
//! send, but not what it may have others keep for it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use prost::bytes::{Buf, Bytes};
use tokio::time::sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Status, body::Body};
use tracing::Span;

use crate::{call::record, error};

/// How many bytes of answers may wait to be sent in one process: three of the largest
/// messages. What is allocated for them may be twice as much.
const PROCESS_LIMIT: usize = 12 << 20;
/// How many of them a connection may have all the same.
const CONNECTION_SHARE: usize = 1 << 20;
/// How long a connection may take none of them while others have no room: a few round
/// trips, and what a garbage collector may stop a caller for.
const MOST_STALL: Duration = Duration::from_secs(10);

/// How many bytes of answers wait to be sent. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backlog {
    process: Arc<Process>,
    connection: Arc<AtomicUsize>,
    /// How often the peer of the connection has taken some.
    taken: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Process {
    bytes: AtomicUsize,
    /// Whether some answers were refused since there was room for all.
    refuses: AtomicBool,
}

impl Backlog {
    /// That of a further connection.
    pub(super) fn of_connection(&self) -> Self {
        Self { process: Arc::clone(&self.process), ..Self::default() }
    }

    /// Counts the bytes of an answer until they are sent. Its `call` is under way until
    /// then.
    pub(super) fn hold(self, body: Body, call: TaskTrackerToken, span: Span) -> Held {
        Held { body, backlog: self, call, span, is_refused: false }
    }

    fn add(&self, bytes: Bytes, call: TaskTrackerToken) -> Unsent {
        let length = bytes.len();
        self.process.bytes.fetch_add(length, Relaxed);
        self.connection.fetch_add(length, Relaxed);
        Unsent { bytes, length, backlog: self.clone(), _call: call }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.process.bytes.load(Relaxed) == 0
    }

    /// Whether there is no room for more on this connection. Those with little of it are
    /// not made to suffer for others.
    fn is_full(&self) -> bool {
        self.connection.load(Relaxed) > CONNECTION_SHARE
            && self.process.bytes.load(Relaxed) > PROCESS_LIMIT
    }

    /// Returns when the connection has kept its answers for long although the process has
    /// no room for more.
    pub(super) async fn stuck(&self) {
        loop {
            let before = self.taken.load(Relaxed);
            let had_some = self.connection.load(Relaxed) > 0;
            sleep(MOST_STALL).await;
            let has_taken = self.taken.load(Relaxed) != before;
            if had_some && !has_taken && self.process.bytes.load(Relaxed) > PROCESS_LIMIT {
                return;
            }
        }
    }

    /// Tells of the first of many that are refused.
    fn refuse(&self) -> Status {
        if !self.process.refuses.swap(true, Relaxed) {
            tracing::warn!(
                limit = PROCESS_LIMIT,
                "callers do not take their answers: some are refused"
            );
        }
        error::refusal(
            Code::ResourceExhausted,
            "ANSWERS_NOT_TAKEN",
            "this connection has not taken the answers that wait for it; read them before you ask \
             for more",
        )
    }

    /// Whoever is at the limit again and again is over it all the while, until a quarter
    /// is free.
    fn release(&self, length: usize) {
        self.connection.fetch_sub(length, Relaxed);
        let left = self.process.bytes.fetch_sub(length, Relaxed) - length;
        if left <= PROCESS_LIMIT - PROCESS_LIMIT / 4
            && self.process.refuses.load(Relaxed)
            && self.process.refuses.swap(false, Relaxed)
        {
            tracing::info!("callers take their answers again");
        }
    }
}

/// The body of an answer that must have room.
pub(super) struct Held {
    body: Body,
    backlog: Backlog,
    call: TaskTrackerToken,
    span: Span,
    is_refused: bool,
}

impl HttpBody for Held {
    type Data = Unsent;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unsent>, Status>>> {
        let this = self.get_mut();
        if this.is_refused {
            return Poll::Ready(None);
        }
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(context)?) else {
            return Poll::Ready(None);
        };
        if frame.is_data() && this.backlog.is_full() {
            this.is_refused = true;
            this.body = Body::empty();
            let refusal = this.span.in_scope(|| this.backlog.refuse());
            record(&this.span, refusal.code());
            let mut trailers = HeaderMap::new();
            // Its message is text, so that it can always be a trailer.
            let _ = refusal.add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let unsent = |bytes| this.backlog.add(bytes, this.call.clone());
        Poll::Ready(Some(Ok(frame.map_data(unsent))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_refused || self.body.is_end_stream()
    }
}

/// Bytes of an answer until they are sent.
pub(super) struct Unsent {
    bytes: Bytes,
    length: usize,
    backlog: Backlog,
    _call: TaskTrackerToken,
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.backlog.release(self.length);
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.backlog.taken.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::{BodyExt, Full};
    use tokio::time::timeout;
    use tokio_util::task::TaskTracker;

    use super::*;

    fn next_frame(backlog: &Backlog, length: usize) -> Frame<Unsent> {
        let answer = Full::new(Bytes::from(vec![0; length])).map_err(|never| match never {});
        let mut held =
            backlog.clone().hold(Body::new(answer), TaskTracker::new().token(), Span::none());
        let frame = held.frame().now_or_never().unwrap().unwrap().unwrap();
        assert!(held.is_end_stream() && held.frame().now_or_never().unwrap().is_none());
        frame
    }

    #[test]
    fn whoever_takes_no_answers_is_refused_more_and_nobody_else_is() {
        let process = Backlog::default();
        let (idle, other) = (process.of_connection(), process.of_connection());
        let refuses = || process.process.refuses.load(Relaxed);
        let untaken = [next_frame(&idle, PROCESS_LIMIT), next_frame(&other, CONNECTION_SHARE)];
        assert!(untaken.iter().all(Frame::is_data));
        assert!(next_frame(&other, 1).is_data());

        let trailers = next_frame(&idle, 1).into_trailers().ok().unwrap();
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(error::reason(&status).as_deref(), Some("ANSWERS_NOT_TAKEN"));

        assert!(refuses());
        drop(untaken);
        assert!(process.is_empty() && !refuses());
        assert!(next_frame(&idle, 1).is_data());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_stuck_once_there_is_no_room_and_who_takes_some_is_not() {
        let process = Backlog::default();
        let (idle, reader) = (process.of_connection(), process.of_connection());
        let _untaken = next_frame(&idle, PROCESS_LIMIT);
        assert!(timeout(3 * MOST_STALL, idle.stuck()).await.is_err());
        let mut read = next_frame(&reader, 100).into_data().ok().unwrap();
        let reading = async {
            for _ in 0..9 {
                sleep(MOST_STALL / 2).await;
                read.advance(1);
            }
        };
        tokio::select! {
            () = reader.stuck() => panic!("he reads"),
            () = reading => {}
        }
        timeout(2 * MOST_STALL, idle.stuck()).await.unwrap();
        timeout(2 * MOST_STALL, reader.stuck()).await.unwrap();
    }
}
