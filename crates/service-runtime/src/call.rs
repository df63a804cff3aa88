//! What happens around every call, from the outside in: its span, its caller's
//! right to make it, and his who stands behind the caller, its deadline, the handler;
//! and on the way out the end of its response, streams included.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use client::{
    Deadline, SpiffeId, deadline,
    end_user::{self, Token},
};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use prost::bytes::Bytes;
use proto::{Policies, Policy};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, service::Routes};
use tower::Service;
use tracing::{Instrument, Span};

use crate::{
    Caller, EndUser,
    access_token::{self, Verifier},
    caller::OPERATOR,
    connection::Drain,
    error, framing, telemetry, to_proto_role,
};

/// Who may call what.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) policies: Policies,
    pub(crate) trust_domain: String,
    pub(crate) namespace: String,
    pub(crate) verifier: Verifier,
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

    pub(crate) async fn serve(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let span = telemetry::server_span(request.uri().path(), request.headers());
        if let Err((http_status, status)) = framing::check(&request) {
            record(&span, status.code());
            let mut response = status.into_http();
            *response.status_mut() = http_status;
            return Ok(response);
        }
        let response = self.answer(request, &span).instrument(span.clone()).await;
        Ok(response.unwrap_or_else(|status| {
            record(&span, status.code());
            status.into_http()
        }))
    }

    async fn answer(
        mut self,
        mut request: Request<Incoming>,
        span: &Span,
    ) -> Result<Response<Body>, Status> {
        let Admission { peer, policy } =
            self.rules.admit(request.uri().path(), self.peer.as_ref())?;
        span.record("client.address", peer.workload());
        let timeout = deadline::requested_timeout(request.headers())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let default = policy.map(|policy| policy.default_deadline);
        let deadline = timeout.or(default).map(Deadline::after);

        let Drain { goaway, cut } = self.drain;
        let has_no_end = policy.map_or(request.uri().path() == HEALTH_WATCH, |it| it.resumable);
        let cut = if has_no_end { goaway } else { cut };
        let mut end = End { deadline, token_expiry: None, cut };

        let token = Token::of(request.headers());
        let is_present = request.headers().contains_key(AUTHORIZATION);
        let user = tokio::select! {
            biased;
            user = self.rules.admit_user(peer, policy, token.as_ref().ok_or(is_present)) => user?,
            status = end.clone().reached() => return Err(status),
        };
        if policy.is_some_and(|policy| policy.streaming) {
            let remaining = user.map(|user| self.rules.verifier.remaining(&user));
            end.token_expiry = remaining.map(Deadline::after);
        }
        // Nobody is handed on who was not proven.
        let token = token.filter(|_| user.is_some());
        request.extensions_mut().insert(Caller::new(peer.clone(), user));
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
        }
        let span = span.clone();
        Ok(response.map(|body| {
            let end = Box::pin(end.reached());
            Body::new(Answer { body, end, deadline, token, span, ended: false })
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
    /// `token` is the one token there is; else whether there was anything.
    async fn admit_user(
        &self,
        peer: &SpiffeId,
        policy: Option<&Policy>,
        token: Result<&Token, bool>,
    ) -> Result<Option<EndUser>, Status> {
        let Some(policy) = policy.filter(|policy| !policy.roles.is_empty()) else {
            return Ok(None);
        };
        let token = match token {
            Ok(token) => token,
            Err(false) if peer.workload() == OPERATOR => return Ok(None),
            Err(false) => return Err(access_token::missing()),
            Err(true) => return Err(access_token::invalid()),
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

/// The stream of health, which has no end of its own either.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

fn record(span: &Span, code: Code) {
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
            () = self.cut.cancelled() => Status::unavailable("the service is going away; repeat the call"),
        }
    }
}

/// The body of a response, which ends when its call must.
struct Answer<E> {
    body: Body,
    end: Pin<Box<E>>,
    deadline: Option<Deadline>,
    token: Option<Token>,
    span: Span,
    ended: bool,
}

impl<E: Future<Output = Status>> HttpBody for Answer<E> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let _entered = this.span.enter();
        let body = Pin::new(&mut this.body);
        let polled = deadline::sync_scope(this.deadline, || {
            end_user::sync_scope(this.token.clone(), || body.poll_frame(context))
        });
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(code) = frame.trailers_mut().and_then(framing::correct) {
                    record(&this.span, code);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other),
            Poll::Pending => {
                let status = std::task::ready!(this.end.as_mut().poll(context));
                this.ended = true;
                record(&this.span, status.code());
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(match status.add_header(&mut trailers) {
                    Ok(()) => Ok(Frame::trailers(trailers)),
                    Err(status) => Err(status),
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Clock,
        access_token::{Realm, TokenKeys},
    };

    const RESERVE: &str = "/chandlery.catalog.v1.StockService/Reserve";
    const GET_PRODUCT: &str = "/chandlery.catalog.v1.CatalogService/GetProduct";

    fn admit(path: &str, peer: Option<[&str; 3]>) -> Result<Option<Duration>, Code> {
        let rules = Rules {
            policies: Policies::load().unwrap(),
            trust_domain: "chandlery.local".to_owned(),
            namespace: "chandlery".to_owned(),
            verifier: Verifier {
                realm: Realm::new("chandlery.local", "chandlery"),
                keys: TokenKeys::new(|| Box::pin(async { Ok(Vec::new()) })),
                clock: Clock::system(),
            },
        };
        let peer = peer.map(|[domain, namespace, workload]| {
            SpiffeId::new(domain, namespace, workload).unwrap()
        });
        let admitted = rules.admit(path, peer.as_ref());
        let default = |admission: Admission<'_>| admission.policy.map(|it| it.default_deadline);
        admitted.map(default).map_err(|status| status.code())
    }

    #[test]
    fn only_the_workloads_that_the_contract_names_are_admitted() {
        let named = Some(["chandlery.local", "chandlery", "purchase-service"]);
        let other = Some(["chandlery.local", "chandlery", "user-service"]);
        assert_eq!(admit(RESERVE, named), Ok(Some(Duration::from_secs(2))));
        assert_eq!(admit(RESERVE, other), Err(Code::PermissionDenied));
        assert!(admit(GET_PRODUCT, other).is_ok());
    }

    #[test]
    fn a_name_counts_in_the_own_trust_domain_and_namespace_alone() {
        for foreign in [["elsewhere", "chandlery"], ["chandlery.local", "other"]] {
            let peer = Some([foreign[0], foreign[1], "purchase-service"]);
            assert_eq!(admit(RESERVE, peer), Err(Code::PermissionDenied));
            assert_eq!(admit("/grpc.health.v1.Health/Check", peer), Err(Code::PermissionDenied));
        }
        assert_eq!(admit(RESERVE, None), Err(Code::Unauthenticated));
    }

    #[test]
    fn health_and_reflection_are_open_to_the_suite_and_nothing_else_is() {
        let anyone = Some(["chandlery.local", "chandlery", "anyone"]);
        assert_eq!(admit("/grpc.health.v1.Health/Watch", anyone), Ok(None));
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert_eq!(admit(reflection, anyone), Ok(None));
        assert_eq!(admit("/an.other.v1.Service/Call", anyone), Err(Code::Unimplemented));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_with_the_token_of_its_user() {
        let after = |seconds| Some(Deadline::after(Duration::from_secs(seconds)));
        let end =
            End { deadline: after(60), token_expiry: after(2), cut: CancellationToken::new() };
        let mut answer = Answer {
            body: Body::new(http_body_util::StreamBody::new(futures::stream::pending::<
                Result<Frame<Bytes>, Status>,
            >())),
            end: Box::pin(end.reached()),
            deadline: after(60),
            token: None,
            span: Span::none(),
            ended: false,
        };
        let begun = tokio::time::Instant::now();
        let frame = std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await;
        let trailers = frame.unwrap().unwrap().into_trailers().unwrap();
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!(error::reason(&status).as_deref(), Some("TOKEN_EXPIRED"));
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }
}
