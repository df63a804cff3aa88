//! What happens around every call, from the outside in: its span, its caller's
//! right to make it, its place among the calls under way, him who stands behind the
//! caller, its deadline, the handler; and on the way out its [`answer`].

mod answer;
mod compression;
mod load;

use std::{convert::Infallible, sync::Arc, time::Duration};

use client::{Deadline, SpiffeId, deadline, end_user};
use http::{Request, Response};
use http_body::Body as HttpBody;
use prost::bytes::Bytes;
use proto::{Policies, Policy};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, codegen::StdError, service::Routes};
use tower::Service;
use tracing::{Instrument, Span};

pub(crate) use self::load::Load;
use self::{
    answer::{Answer, Scope},
    compression::Encoding,
    load::Kind,
};
use crate::{
    Caller, EndUser,
    access_token::{self, Proof, Verifier},
    caller::OPERATOR,
    connection::Drain,
    error, framing, telemetry, to_proto_role,
};

/// Who may call what, and how much at once.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) policies: Policies,
    pub(crate) trust_domain: String,
    pub(crate) namespace: String,
    pub(crate) verifier: Verifier,
    pub(crate) load: Load,
}

/// What the contract says of a call; nothing of health and reflection.
#[derive(Debug)]
struct Admission<'a> {
    peer: &'a SpiffeId,
    policy: Option<&'a Policy>,
}

/// Serves the calls of one connection.
#[derive(Clone)]
pub(crate) struct Call {
    routes: Routes,
    rules: Arc<Rules>,
    peer: Option<SpiffeId>,
    drain: Drain,
}

impl Call {
    /// `drain` ends calls that are still under way with UNAVAILABLE.
    pub(crate) fn new(
        routes: Routes,
        rules: Arc<Rules>,
        peer: Option<SpiffeId>,
        drain: Drain,
    ) -> Self {
        Self { routes, rules, peer, drain }
    }

    /// Leaves its span with the response, for whatever becomes of that.
    pub(crate) async fn serve<B>(self, request: Request<B>) -> Result<Response<Body>, Infallible>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError>> + Send + 'static,
    {
        let span = telemetry::server_span(request.uri().path(), request.headers());
        if let Err((http_status, status)) = framing::check(&request) {
            record(&span, status.code());
            let mut response = status.into_http();
            *response.status_mut() = http_status;
            return Ok(response);
        }
        // In a box, which goes when the answer begins: a stream is to keep none of it.
        let response = Box::pin(self.answer(request, &span)).instrument(span.clone()).await;
        let mut response = response.unwrap_or_else(|status| {
            record(&span, status.code());
            status.into_http()
        });
        response.extensions_mut().insert(span);
        Ok(response)
    }

    async fn answer<B>(
        mut self,
        mut request: Request<B>,
        span: &Span,
    ) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError>> + Send + 'static,
    {
        if self.drain.refuse.is_cancelled() {
            return Err(going_away());
        }
        let Admission { peer, policy } =
            self.rules.admit(request.uri().path(), self.peer.as_ref())?;
        span.record("client.address", peer.workload());
        // Whoever asks how a process is wants to know it of one that is overloaded, too.
        let is_check = policy.is_none() && request.uri().path() == HEALTH_CHECK;
        let kind = match policy {
            None => Kind::Inquiry,
            Some(policy) if policy.streaming => Kind::Stream,
            Some(_) => Kind::Unary,
        };
        let is_stream = !is_check && kind != Kind::Unary;
        let place = (!is_check).then(|| self.rules.load.admit(kind, peer)).transpose()?;
        // The streams of health and reflection have no end of their own either.
        let has_no_end = policy.map_or(is_stream, |policy| policy.resumable);
        let timeout = deadline::requested_timeout(request.headers())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let default = policy.map(|policy| policy.default_deadline);
        let longest = if has_no_end { Duration::MAX } else { LONGEST_CALL };
        let timeout = timeout.or(default).map(|timeout| timeout.min(longest));
        let deadline = timeout.map(Deadline::after);

        let Drain { goaway, cut, .. } = self.drain;
        let cut = if has_no_end { goaway } else { cut };
        let mut end = End { deadline, token_expiry: None, cut };

        let proof = Proof::of(request.headers());
        let user = tokio::select! {
            biased;
            user = self.rules.admit_user(peer, policy, &proof) => user?,
            status = end.clone().reached() => return Err(status),
        };
        if is_stream {
            let remaining = user.map(|user| self.rules.verifier.remaining(&user));
            end.token_expiry = remaining.map(Deadline::after);
        }
        // Nobody is handed on who was not proven.
        let token = proof.into_token().filter(|_| user.is_some());
        request.extensions_mut().insert(Caller::new(peer.clone(), user));
        let encoding = Encoding::accepted(request.headers());
        let mut early = std::pin::pin!(end.clone().reached());
        let handled = end_user::scope(token.clone(), self.routes.call(request));
        let response = tokio::select! {
            // The handler first: an answer that is there is never thrown away.
            biased;
            response = deadline::scope(deadline, handled) => response,
            status = &mut early => return Err(status),
        };
        let Ok(mut response) = response;
        if let Some(code) = framing::correct(response.headers_mut()) {
            record(span, code);
            return Ok(response);
        }
        if let Some(encoding) = encoding {
            encoding.announce(response.headers_mut());
        }
        let scope = Scope { deadline, token, span: span.clone() };
        Ok(response.map(|body| {
            Body::new(if is_stream {
                Answer::stream(body, scope, encoding, place, end.reached())
            } else {
                Answer::whole(body, scope, encoding)
            })
        }))
    }
}

impl Rules {
    /// Whether the peer may call, whoever stands behind it.
    fn admit<'a>(
        &'a self,
        path: &str,
        peer: Option<&'a SpiffeId>,
    ) -> Result<Admission<'a>, Status> {
        let peer = peer.ok_or_else(|| {
            error::refusal(
                Code::Unauthenticated,
                "SPIFFE_ID_MISSING",
                "the client certificate carries no SPIFFE ID; use one with a single URI SAN",
            )
        })?;
        let deny = |message: String| error::refusal(Code::PermissionDenied, "NOT_ALLOWED", message);
        if peer.trust_domain() != self.trust_domain || peer.namespace() != self.namespace {
            let Self { trust_domain, namespace, .. } = self;
            return Err(deny(format!(
                "{peer} is not of spiffe://{trust_domain}/ns/{namespace}; use a certificate that is"
            )));
        }
        // Anyone of the suite may ask how it is and what it offers.
        let open = ["/grpc.health.v1.", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha."];
        if open.iter().any(|prefix| path.starts_with(prefix)) {
            return Ok(Admission { peer, policy: None });
        }
        let Some(policy) = self.policies.get(path) else {
            return Err(Status::unimplemented("the contract has no such RPC; check its path"));
        };
        if !policy.callers.admit(peer.workload()) {
            return Err(deny(format!("{peer} may not call {path}; call as one who may")));
        }
        Ok(Admission { peer, policy: Some(policy) })
    }

    /// The end user on whose behalf the peer calls, where the contract demands one.
    async fn admit_user(
        &self,
        peer: &SpiffeId,
        policy: Option<&Policy>,
        proof: &Proof,
    ) -> Result<Option<EndUser>, Status> {
        let Some(policy) = policy.filter(|policy| !policy.roles.is_empty()) else {
            return Ok(None);
        };
        let token = match proof {
            Proof::Token(token) => token,
            Proof::Absent if peer.workload() == OPERATOR => return Ok(None),
            Proof::Absent => return Err(access_token::missing()),
            Proof::Ambiguous => return Err(access_token::invalid()),
        };
        let user = self.verifier.verify(token).await?;
        if policy.roles.contains(&to_proto_role(user.role)) {
            return Ok(Some(user));
        }
        Err(error::refusal(
            Code::PermissionDenied,
            "ROLE_MISSING",
            "this is for staff; sign in as somebody to whom the operator gave that role",
        ))
    }
}

const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// How long a call that has an end may take, whatever its caller grants it: as long as the
/// contract grants the longest. Its place is not to be held by one who forgets it.
const LONGEST_CALL: Duration = Duration::from_hours(1);

fn going_away() -> Status {
    Status::unavailable("the service is going away; repeat the call")
}

pub(crate) fn record(span: &Span, code: Code) {
    span.record("rpc.grpc.status_code", i32::from(code));
}

/// What ends a call whose handler does not.
#[derive(Clone)]
struct End {
    deadline: Option<Deadline>,
    token_expiry: Option<Deadline>,
    cut: CancellationToken,
}

impl End {
    async fn reached(self) -> Status {
        let passed = async |deadline: Option<Deadline>| match deadline {
            Some(deadline) => sleep_until(deadline.instant()).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            () = passed(self.token_expiry) => access_token::expired(),
            () = passed(self.deadline) => Status::deadline_exceeded(
                "the deadline of the call has passed; look what came of it, or repeat it",
            ),
            () = self.cut.cancelled() => going_away(),
        }
    }
}

#[cfg(test)]
mod tests;
