//! Requests that can be sent again: as much of a body as is there at once is kept until
//! its call has been answered.

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

type Data = <Body as http_body::Body>::Data;

/// The most that is kept of a request, in bytes: far more than a unary request of the
/// contract has, and no more than 64 MiB with a thousand of them in flight.
const MAX_KEPT: usize = 64 * 1024;

/// A body, as much of it kept as is possible.
#[derive(Debug)]
pub(crate) enum Kept {
    /// All of it, which can be sent any number of times.
    Whole(Whole),
    /// It is long, not all there yet, or broken, and can be sent once.
    Partly(Body),
}

/// All of a body.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    data: Data,
    trailers: Option<HeaderMap>,
}

impl Whole {
    /// The body once more.
    pub(crate) fn body(&self) -> Body {
        let Self { data, trailers } = self.clone();
        Body::new(Taken { data, then: Then::End(trailers) })
    }
}

/// Keeps of a body what is there at once, and waits for nothing.
pub(crate) async fn keep(mut body: Body) -> Kept {
    let Taken { data, then } =
        poll_fn(|context| Poll::Ready(Taken::from(&mut body, context))).await;
    match then {
        Then::End(trailers) if data.len() <= MAX_KEPT => Kept::Whole(Whole { data, trailers }),
        then => Kept::Partly(Body::new(Taken { data, then })),
    }
}

/// A body of which data was taken already.
struct Taken {
    data: Data,
    then: Then,
}

/// What comes after the data that was taken.
enum Then {
    End(Option<HeaderMap>),
    Broken(Status),
    Rest(Body),
}

impl Taken {
    /// Takes what is ready, leaving an empty body behind.
    fn from(body: &mut Body, context: &mut Context<'_>) -> Self {
        // A unary request is one frame, which is not copied.
        let (mut first, mut joined) = (Data::new(), Vec::new());
        let then = loop {
            if body.is_end_stream() {
                break Then::End(None);
            }
            if first.len().max(joined.len()) > MAX_KEPT {
                break Then::Rest(mem::take(body));
            }
            let frame = match Pin::new(&mut *body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => break Then::Broken(error),
                Poll::Ready(None) => break Then::End(None),
                Poll::Pending => break Then::Rest(mem::take(body)),
            };
            match frame.into_data() {
                Ok(data) if first.is_empty() => first = data,
                Ok(data) => {
                    if joined.is_empty() {
                        joined.extend_from_slice(&first);
                    }
                    joined.extend_from_slice(&data);
                }
                Err(frame) => break Then::End(frame.into_trailers().ok()),
            }
        };
        let data = if joined.is_empty() { first } else { joined.into() };
        Self { data, then }
    }
}

impl http_body::Body for Taken {
    type Data = Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, Status>>> {
        let data = mem::take(&mut self.data);
        if !data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Then::Rest(body) = &mut self.then {
            return Pin::new(body).poll_frame(context);
        }
        Poll::Ready(match mem::replace(&mut self.then, Then::End(None)) {
            Then::End(trailers) => trailers.map(|it| Ok(Frame::trailers(it))),
            Then::Broken(error) => Some(Err(error)),
            Then::Rest(_) => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
            && match &self.then {
                Then::End(trailers) => trailers.is_none(),
                Then::Broken(_) => false,
                Then::Rest(body) => body.is_end_stream(),
            }
    }

    /// Is exact for a whole body, so that the stream ends with its data.
    fn size_hint(&self) -> SizeHint {
        let taken = self.data.len() as u64;
        let rest = match &self.then {
            Then::End(_) => SizeHint::with_exact(0),
            Then::Broken(_) => SizeHint::default(),
            Then::Rest(body) => body.size_hint(),
        };
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + taken);
        }
        hint.set_lower(rest.lower() + taken);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// What a scripted body does when it is polled; in the end it ends.
    #[derive(Clone, Debug)]
    enum Step {
        Data(Vec<u8>),
        Wait,
        Trailers,
        Break,
    }

    struct Script(VecDeque<Step>);

    impl http_body::Body for Script {
        type Data = Data;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Data>, Status>>> {
            Poll::Ready(match self.0.pop_front() {
                Some(Step::Data(data)) => Some(Ok(Frame::data(data.into()))),
                Some(Step::Trailers) => Some(Ok(Frame::trailers(trailers()))),
                Some(Step::Break) => Some(Err(Status::aborted("broken"))),
                Some(Step::Wait) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => None,
            })
        }
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([("checksum".parse().unwrap(), "7".parse().unwrap())])
    }

    fn script(steps: impl IntoIterator<Item = Step>) -> Body {
        Body::new(Script(steps.into_iter().collect()))
    }

    /// All that a body sends, and how it ends.
    async fn read(mut body: Body) -> (Vec<u8>, Result<Option<HeaderMap>, String>) {
        let mut data = Vec::new();
        while let Some(frame) = poll_fn(|it| Pin::new(&mut body).poll_frame(it)).await {
            match frame.map(Frame::into_data) {
                Ok(Ok(more)) => data.extend_from_slice(&more),
                Ok(Err(frame)) => return (data, Ok(frame.into_trailers().ok())),
                Err(error) => return (data, Err(error.to_string())),
            }
        }
        (data, Ok(None))
    }

    async fn whole(steps: impl IntoIterator<Item = Step>) -> Option<Whole> {
        match keep(script(steps)).await {
            Kept::Whole(whole) => Some(whole),
            Kept::Partly(_) => None,
        }
    }

    #[tokio::test]
    async fn a_unary_request_is_kept_without_a_copy_and_ends_with_its_data() {
        let message = vec![7; 1_000];
        let place = message.as_ptr();
        let kept = whole([Step::Data(message)]).await.unwrap();
        for _ in 0..3 {
            let mut body = kept.body();
            assert_eq!(body.size_hint().exact(), Some(1_000));
            let frame = poll_fn(|it| Pin::new(&mut body).poll_frame(it)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap().as_ptr(), place);
            assert!(body.is_end_stream());
        }
    }

    #[tokio::test]
    async fn a_request_without_a_message_is_whole() {
        let kept = whole([]).await.unwrap();
        assert!(kept.body().is_end_stream());
        assert!(matches!(keep(Body::empty()).await, Kept::Whole(_)));
    }

    #[tokio::test]
    async fn only_what_ends_at_once_and_is_short_can_be_sent_again() {
        let message = |length| Step::Data(vec![7; length]);
        assert!(whole([message(MAX_KEPT)]).await.is_some());
        assert!(whole([message(MAX_KEPT + 1)]).await.is_none());
        assert!(whole([message(MAX_KEPT), message(1)]).await.is_none());
        assert!(whole([message(1), message(2), Step::Trailers]).await.is_some());
        assert!(whole([message(1), Step::Wait]).await.is_none());
        assert!(whole([message(1), Step::Break]).await.is_none());
        let long = Taken { data: vec![7; MAX_KEPT + 1].into(), then: Then::End(None) };
        assert!(matches!(keep(Body::new(long)).await, Kept::Partly(_)));
    }

    #[tokio::test]
    async fn a_request_without_an_end_is_kept_no_further_than_its_limit() {
        let endless = std::iter::repeat_n(Step::Data(vec![7; 1_000]), 10_000);
        let Kept::Partly(body) = keep(script(endless)).await else { panic!("kept 10 MB") };
        assert!((64_000..70_000).contains(&body.size_hint().lower()));
        assert_eq!(read(body).await.0.len(), 10_000_000);
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_usize..40_000).prop_map(|length| Step::Data(vec![7; length])),
            4 => prop::collection::vec(any::<u8>(), 0..9).prop_map(Step::Data),
            1 => Just(Step::Wait),
        ];
        let end = prop_oneof![
            4 => Just(None),
            1 => Just(Some(Step::Trailers)),
            1 => Just(Some(Step::Break)),
        ];
        (prop::collection::vec(step, 0..6), end)
            .prop_map(|(steps, end)| steps.into_iter().chain(end).collect())
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_would_have_been(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let expected = read(script(steps.clone())).await;
                match keep(script(steps)).await {
                    Kept::Partly(body) => prop_assert_eq!(read(body).await, expected),
                    Kept::Whole(whole) => {
                        for _ in 0..2 {
                            prop_assert_eq!(read(whole.body()).await, expected.clone());
                        }
                    }
                }
                Ok(())
            })?;
        }
    }
}
