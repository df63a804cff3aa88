//! `grpc.health.v1.Health` of a server whose services are all in one state.
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health as Contract,
};

/// Tells how a server is. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    names: Arc<[&'static str]>,
    is_serving: watch::Receiver<bool>,
}

impl Health {
    /// The health of the services of these names, and of the server as a whole.
    pub(crate) fn new(names: &[&'static str], is_serving: watch::Receiver<bool>) -> Self {
        Self { names: names.into(), is_serving }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.names.contains(&service)
    }
}

fn response(is_serving: bool) -> HealthCheckResponse {
    answer(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Contract for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if self.knows(&request.get_ref().service) {
            return Ok(Response::new(response(*self.is_serving.borrow())));
        }
        let names = self.names.join(", ");
        Err(Status::not_found(format!(
            "this server has no such service; ask for {names}, or for all by an empty name"
        )))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !self.knows(&request.get_ref().service) {
            // It may be added while the caller waits, says the protocol; not here.
            let unknown = stream::iter([Ok(answer(ServingStatus::ServiceUnknown))]);
            return Ok(Response::new(unknown.chain(stream::pending()).boxed()));
        }
        let mut is_serving = self.is_serving.clone();
        is_serving.mark_changed();
        let states = stream::unfold(is_serving, |mut is_serving| async move {
            is_serving.changed().await.ok()?;
            let state = *is_serving.borrow_and_update();
            Some((Ok(response(state)), is_serving))
        });
        Ok(Response::new(states.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, TryStreamExt};
    use tonic::Code;

    use super::*;

    fn request(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    #[tokio::test]
    async fn a_watch_tells_every_change_and_waits_for_a_service_that_there_is_not() {
        let (sender, receiver) = watch::channel(false);
        let health = Health::new(&["a.v1.Service"], receiver);
        let check = async |name| health.check(request(name)).await.map(|it| it.get_ref().status());
        assert_eq!(check("other").await.unwrap_err().code(), Code::NotFound);
        assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);

        let mut known = health.watch(request("a.v1.Service")).await.unwrap().into_inner();
        let mut unknown = health.watch(request("other")).await.unwrap().into_inner();
        let first = known.try_next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::NotServing);
        assert!(known.try_next().now_or_never().is_none());
        sender.send_replace(true);
        assert_eq!(known.try_next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        let first = unknown.try_next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::ServiceUnknown);
        assert!(unknown.try_next().now_or_never().is_none());
    }
}
