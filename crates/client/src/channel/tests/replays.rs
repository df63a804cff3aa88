//! Calls whose connection breaks, or that a peer does not begin with.

use tokio::{spawn, task::JoinHandle};

use super::{
    frames::{CANCEL, Listener, Peer},
    *,
};

/// A peer that a channel is connected to, and a call that it has received.
struct Scene {
    listener: Listener,
    channel: Channel,
}

impl Scene {
    async fn new() -> Self {
        Self::with_max_streams(None).await
    }

    async fn with_max_streams(max_streams: Option<u32>) -> Self {
        let authority = Authority::new();
        let identity = authority.identity(CATALOG);
        let listener = Listener::bind(&identity, max_streams).await;
        let channel = channel(listener.target(), &authority.identity(PURCHASE));
        Self { listener, channel }
    }

    async fn accept(&self) -> Peer {
        self.listener.accept().await
    }

    fn reserve(&self) -> JoinHandle<Result<(), Status>> {
        let channel = self.channel.clone();
        spawn(async move { reserve(&channel).await })
    }

    fn sign_in(&self) -> JoinHandle<Result<(), Status>> {
        let channel = self.channel.clone();
        spawn(async move { sign_in(&channel).await })
    }

    fn sign_in_at_length(&self, length: usize) -> JoinHandle<Result<(), Status>> {
        let mut client = AuthServiceClient::new(self.channel.clone());
        let request = SignInRequest { password: "p".repeat(length), ..Default::default() };
        spawn(async move { client.sign_in(request).await.map(drop) })
    }
}

#[tokio::test]
async fn a_call_that_is_refused_is_replayed_whatever_it_is() {
    let scene = Scene::new().await;
    let call = scene.sign_in();
    let mut peer = scene.accept().await;
    let refused = peer.request().await;
    peer.refuse(refused).await;
    let replayed = peer.request().await;
    peer.answer(replayed).await;
    call.await.unwrap().unwrap();
    let Snapshot { calls, attempts, replays, .. } = scene.channel.snapshot();
    assert_eq!((calls, attempts, replays), (1, 2, 1));
}

#[tokio::test]
async fn a_call_that_is_refused_twice_fails() {
    let scene = Scene::new().await;
    let call = scene.sign_in();
    let mut peer = scene.accept().await;
    for _ in 0..2 {
        let stream = peer.request().await;
        peer.refuse(stream).await;
    }
    assert_unavailable(call.await.unwrap(), &["the request was refused"]);
}

#[tokio::test]
async fn streams_above_the_last_one_of_a_goaway_are_replayed_and_the_one_below_is_not() {
    let scene = Scene::new().await;
    let below = scene.sign_in();
    let mut peer = scene.accept().await;
    let last = peer.request().await;
    let above = [scene.sign_in(), scene.sign_in()];
    peer.request().await;
    peer.request().await;
    peer.go_away(last).await;

    let mut next = scene.accept().await;
    for call in above {
        let stream = next.request().await;
        next.answer(stream).await;
        // Which of them it was is for the caller to know.
        drop(call);
    }
    assert!(!below.is_finished());
    drop(peer);
    assert_unavailable(below.await.unwrap(), &["catalog-service at", "the connection was lost"]);
    assert_eq!(scene.channel.snapshot().replays, 2);
}

#[tokio::test]
async fn a_call_that_waits_for_a_stream_is_replayed_when_the_connection_goes_away() {
    let scene = Scene::with_max_streams(Some(1)).await;
    let mut peer = scene.accept().await;
    peer.settle().await;
    let open = scene.sign_in();
    let last = peer.request().await;
    let waiting = [scene.sign_in(), scene.sign_in(), scene.sign_in()];
    until(|| scene.channel.snapshot().attempts == 4).await;
    peer.go_away(last).await;

    let mut next = scene.accept().await;
    for _ in &waiting {
        let stream = next.request().await;
        next.answer(stream).await;
    }
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    peer.answer(last).await;
    open.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_whose_connection_breaks_is_repeated_if_a_repeat_does_no_harm() {
    let scene = Scene::new().await;
    let (idempotent, other) = (scene.reserve(), scene.sign_in());
    let mut peer = scene.accept().await;
    peer.request().await;
    peer.request().await;
    drop(peer);
    assert_unavailable(other.await.unwrap(), &["catalog-service at", "the connection was lost"]);

    let mut next = scene.accept().await;
    let repeated = next.request().await;
    next.answer(repeated).await;
    idempotent.await.unwrap().unwrap();
    let Snapshot { calls, attempts, replays, .. } = scene.channel.snapshot();
    assert_eq!((calls, attempts, replays), (2, 3, 0));
}

#[tokio::test]
async fn a_response_that_breaks_off_is_asked_for_again_if_a_repeat_does_no_harm() {
    let scene = Scene::new().await;
    let (idempotent, other) = (scene.reserve(), scene.sign_in());
    let mut peer = scene.accept().await;
    for _ in 0..2 {
        let stream = peer.request().await;
        peer.begin_answer(stream).await;
    }
    drop(peer);
    assert_unavailable(other.await.unwrap(), &["the connection was lost"]);

    let mut next = scene.accept().await;
    let repeated = next.request().await;
    next.answer(repeated).await;
    idempotent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_long_request_is_not_sent_twice() {
    const KEPT: usize = 64 * 1024;
    let scene = Scene::new().await;
    let long = scene.sign_in_at_length(KEPT);
    let mut peer = scene.accept().await;
    let stream = peer.headers().await;
    peer.refuse(stream).await;
    assert_unavailable(long.await.unwrap(), &["the request was refused"]);

    let short = scene.sign_in_at_length(KEPT / 2);
    let stream = peer.headers().await;
    peer.refuse(stream).await;
    let replayed = peer.headers().await;
    peer.answer(replayed).await;
    short.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_that_is_given_up_resets_its_stream() {
    let scene = Scene::new().await;
    let call = scene.sign_in();
    let mut peer = scene.accept().await;
    let unanswered = peer.request().await;
    call.abort();
    assert_eq!(peer.reset().await, (unanswered, CANCEL));

    let call = scene.sign_in();
    let half_answered = peer.request().await;
    peer.begin_answer(half_answered).await;
    call.abort();
    assert_eq!(peer.reset().await, (half_answered, CANCEL));
}
