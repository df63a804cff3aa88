//! Attempts: a call is sent to one endpoint after another until one of them answers, as
//! far as it may be sent again.
//!
//! What no peer has begun with is sent again whatever it is. What may have had its effect
//! is so only if the contract says that a repeat does no harm, and within the budget.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{
    HeaderName, HeaderValue, Request, Uri,
    header::USER_AGENT,
    uri::{PathAndQuery, Scheme},
};
use proto::Idempotency;
use tokio::time::sleep;
use tonic::{Code, Status, body::Body};

use crate::{
    Deadline,
    balance::Outcome,
    connection::{Unanswered, loss},
    deadline,
    endpoint::{Endpoint, Lease},
    endpoints::Endpoints,
    random::Random,
    replay::{self, Kept},
    response::Answer,
    retry::{self, Budget, Decision, Failure, PushBack},
    target::Address,
};

/// How often a call is sent again when one connection after another goes away before the
/// peer has begun with it: as often as gRFC A6 has a call attempted.
const MAX_REPLAYS: u32 = 4;

/// How many attempts at a call a peer may have seen before (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Who calls, as the gRPC protocol has it told.
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("grpc-rust-chandlery/", env!("CARGO_PKG_VERSION")));

/// What the contract and the caller say about a call.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) idempotency: Idempotency,
    /// Whether the answer is known to be one message.
    pub(crate) is_unary: bool,
    pub(crate) deadline: Option<Deadline>,
}

/// Sends the calls of a channel.
pub(crate) struct Attempts {
    pub(crate) endpoints: Endpoints,
    pub(crate) budget: Budget,
    pub(crate) counts: Counts,
    random: Arc<Random>,
}

/// What was done so far.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) calls: AtomicU64,
    pub(crate) attempts: AtomicU64,
    pub(crate) replays: AtomicU64,
}

impl Attempts {
    pub(crate) fn new(endpoints: Endpoints, random: Arc<Random>) -> Self {
        Self { endpoints, budget: Budget::new(), counts: Counts::default(), random }
    }

    /// What came of the last attempt at a call: an answer, whatever its status, or why
    /// there is none.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        rules: Rules,
    ) -> Result<Answer, Status> {
        count(&self.counts.calls);
        self.budget.earn();
        let (mut head, body) = request.into_parts();
        // They stay here, and an empty map is copied for nothing.
        head.extensions.clear();
        head.headers.entry(USER_AGENT).or_insert(AGENT);
        let mut kept = replay::keep(body).await;
        let (mut attempts, mut replays) = (0, 0);
        let mut avoid = None;
        loop {
            let (body, is_kept) = match &mut kept {
                Kept::Whole(whole) => (whole.body(), true),
                Kept::Partly(body) => (mem::take(body), false),
            };
            let request = Request::from_parts(head.clone(), body);
            let (endpoint, answer) = self.attempt(request, rules, avoid.as_ref()).await?;

            let free_replays = match answer {
                Err(Unanswered::Unbegun) => MAX_REPLAYS,
                // Who refuses once has a reason, and others are to hear less of it.
                Err(Unanswered::Refused) => 1,
                _ => 0,
            };
            if is_kept && replays < free_replays {
                replays += 1;
                count(&self.counts.replays);
            } else {
                attempts += 1;
                let failure = failure(&answer).filter(|_| is_kept);
                let Some(wait) = failure.and_then(|it| self.retry(it, attempts, rules)) else {
                    return answer.map_err(|unanswered| self.status(unanswered));
                };
                head.headers.insert(PREVIOUS_ATTEMPTS, attempts.into());
                sleep(wait).await;
            }
            tracing::debug!(endpoint = %endpoint.address(), attempts, replays, "not answered");
            avoid = Some(endpoint);
        }
    }

    /// Sends a request to one endpoint; to another one if it turns out that nothing of it
    /// could be sent.
    async fn attempt(
        &self,
        mut request: Request<Body>,
        rules: Rules,
        avoid: Option<&Arc<Endpoint>>,
    ) -> Result<(Arc<Endpoint>, Result<Answer, Unanswered>), Status> {
        loop {
            let lease = self.endpoints.lease(avoid).await.map_err(Status::unavailable)?;
            let Lease { endpoint, stream, pending } = lease;
            count(&self.counts.attempts);
            direct(&mut request, endpoint.address(), rules.deadline);
            let answer = match stream.send(request).await {
                Ok(response) if rules.is_unary => Answer::whole(response, stream)
                    .await
                    .map_err(|error| Unanswered::Lost(loss(&error))),
                Ok(response) => Ok(Answer::begun(response, stream)),
                Err(Unanswered::Unsent(unsent)) => {
                    self.counts.attempts.fetch_sub(1, Ordering::Relaxed);
                    endpoint.take_back(pending);
                    request = *unsent;
                    continue;
                }
                Err(unanswered) => Err(unanswered),
            };
            match (&answer, failure(&answer)) {
                // To go away is no failure.
                (Err(Unanswered::Unbegun), _) => drop(pending),
                (_, Some(_)) => endpoint.end(pending, Outcome::Failed),
                (_, None) => endpoint.end(pending, Outcome::Answered),
            }
            return Ok((endpoint, answer));
        }
    }

    /// How long to wait before the next attempt; none if there is to be none.
    fn retry(
        &self,
        (code, push_back): (Code, Option<PushBack>),
        attempts: u32,
        rules: Rules,
    ) -> Option<Duration> {
        let remaining = rules.deadline.map(Deadline::remaining);
        let failure = Failure { code, push_back, attempts, remaining };
        match retry::decide(rules.idempotency, &failure, &self.budget, &self.random) {
            Decision::Retry(wait) => Some(wait),
            Decision::GiveUp => None,
        }
    }

    fn status(&self, unanswered: Unanswered) -> Status {
        let reason = match unanswered {
            Unanswered::Lost(reason) => reason,
            Unanswered::Refused => "the request was refused".to_owned(),
            Unanswered::Unsent(_) | Unanswered::Unbegun => "it is going away".to_owned(),
        };
        Status::unavailable(format!("{}: {reason}", self.endpoints.peer()))
    }
}

/// What counts as a failure of the endpoint and not of the request.
fn failure(answer: &Result<Answer, Unanswered>) -> Option<(Code, Option<PushBack>)> {
    let Ok(answer) = answer else {
        return Some((Code::Unavailable, None));
    };
    match (answer.code()?, retry::push_back(answer.metadata())) {
        (Code::Unavailable, push_back) => Some((Code::Unavailable, push_back)),
        (Code::ResourceExhausted, Some(it)) => Some((Code::ResourceExhausted, Some(it))),
        _ => None,
    }
}

/// Writes on a request to whom it goes and how much time is left.
fn direct(request: &mut Request<Body>, to: &Address, deadline: Option<Deadline>) {
    let mut parts = mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(to.authority());
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // A URI that has all its parts is one.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    let timeout = deadline.map(|it| deadline::format_timeout(it.remaining()));
    if let Some(timeout) = timeout.and_then(|it| HeaderValue::try_from(it).ok()) {
        request.headers_mut().insert(deadline::GRPC_TIMEOUT, timeout);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
